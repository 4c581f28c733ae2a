"""Turns a dataset of pairs or of rated answers into tokenised items.

A prompt that is too long loses its oldest turns, then the system prompt; an answer is never cut. A pair whose answers
are the same teaches nothing, and is left out. All of that is counted and told to the user.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from lora_contract.hyperparameters import Hyperparameters
from lora_contract.words import counted
from lora_conversations.examples import SYSTEM, Message
from lora_conversations.identity import conversation_key
from lora_conversations.preferences import Preference, Rating, Sample
from lora_trainer.data.chat import IGNORED, Chat, Row
from lora_trainer.data.items import Item, Pair, RatedAnswer
from lora_trainer.data.rows import TrainingData, dataset_notes, load_samples, split, turn_starts
from lora_trainer.errors import DatasetInvalidError

_MOST_WEIGHT = 100.0

Answered: TypeAlias = list[Row]
"""One prompt with each of its answers."""


@dataclass
class FitCounts:
    """How much of a dataset was cut or left out."""

    shortened: int = 0
    """Prompts that lost their oldest turns or the system prompt."""
    too_long: int = 0
    """Examples that don't fit, even with the last question alone."""
    equal: int = 0
    """Pairs whose two answers are the same tokens."""

    def notes(self, max_length: int, unit: str) -> list[str]:
        """Sentences for the user. `unit` is what an example is called."""
        notes = []
        if self.shortened:
            what = counted(self.shortened, "prompt")
            notes.append(
                f"Shortened: {what} lost the oldest turns or the system prompt, so that the answer fits into "
                f"max_length ({max_length} tokens)."
            )
        if self.too_long:
            what = counted(self.too_long, unit)
            notes.append(
                f"Left out: {what} longer than max_length ({max_length} tokens) together with the question alone."
            )
        if self.equal:
            notes.append(f"Left out: {counted(self.equal, unit)} whose two answers are the same.")
        return notes


def read_pairs(dataset: Path, chat: Chat, parameters: Hyperparameters) -> TrainingData:
    """The pairs of a dataset, for `dpo`; deterministic for a given seed.

    Raises:
        DatasetInvalidError: no usable pair, too many bad lines, or nothing fits `max_length`.
    """
    samples, survey = load_samples(dataset, "dpo", parameters.max_bad_line_share, chat.refuse)
    counts = FitCounts()

    def pairs(sample: Sample) -> Iterator[Item]:
        assert isinstance(sample, Preference), "for dpo, the reader makes pairs of everything"
        rows = fit_answers(
            chat, sample.prompt, (sample.chosen, sample.rejected), sample.tools, parameters.max_length, counts
        )
        if rows is None:
            return
        chosen, rejected = rows
        if chosen.input_ids == rejected.input_ids:
            counts.equal += 1
        else:
            yield Pair(chosen, rejected)

    fitted = _by_conversation(samples, pairs)
    if not fitted and counts.equal and not counts.too_long:
        raise DatasetInvalidError(
            f"The two answers are the same in all {counted(counts.equal, 'pair')} of the dataset.",
            "Give each pair two different answers.",
        )
    notes = [*counts.notes(parameters.max_length, "pair"), *dataset_notes(chat, samples, survey)]
    return split(fitted, samples, parameters, skipped_lines=survey.bad, notes=notes)


def read_ratings(dataset: Path, chat: Chat, parameters: Hyperparameters) -> TrainingData:
    """The rated answers of a dataset, for `kto`; deterministic for a given seed.

    Raises:
        DatasetInvalidError: no usable answer, too many bad lines, nothing fits `max_length`, all training answers are
            good or all bad, or all answer the same prompt.
    """
    samples, survey = load_samples(dataset, "kto", parameters.max_bad_line_share, chat.refuse)
    counts = FitCounts()

    def rated(sample: Sample) -> Iterator[Item]:
        assert isinstance(sample, Rating), "for kto, the reader makes ratings of everything"
        prompt, answer = sample.messages[:-1], sample.messages[-1:]
        rows = fit_answers(chat, prompt, (answer,), sample.tools, parameters.max_length, counts)
        if rows is not None:
            yield RatedAnswer(rows[0], other=rows[0], good=sample.good)

    fitted = _by_conversation(samples, rated)
    notes = [*counts.notes(parameters.max_length, "rated answer"), *dataset_notes(chat, samples, survey)]
    data = split(fitted, samples, parameters, skipped_lines=survey.bad, notes=notes)
    data.notes.append(_check_kinds([item for item in data.train if isinstance(item, RatedAnswer)], parameters))
    data.train = with_others(data.train, parameters)
    data.validation = with_others(data.validation, parameters, among=data.train)
    return data


def _check_kinds(items: Sequence[RatedAnswer], parameters: Hyperparameters) -> str:
    """A sentence for the user about how much both kinds count. Refuses items of one kind."""
    good = sum(item.good for item in items)
    if good and good < len(items):
        bad = len(items) - good
        desirable, undesirable = answer_weights(good, bad, parameters)
        return f"Good answers count {desirable:.3g} each ({good:,} of them), bad ones {undesirable:.3g} ({bad:,})."
    kind = "good" if good else "bad"
    raise DatasetInvalidError(
        f"All {counted(len(items), 'rated answer')} to train on are {kind}; method kto learns from the difference.",
        "Add answers of the other kind, or train good ones with method sft.",
    )


def answer_weights(good: int, bad: int, parameters: Hyperparameters) -> tuple[float, float]:
    """How much a good and a bad answer count: as the user chose, or so that the rarer kind counts as much as the other.

    That is what the paper recommends (Eq. 8), within the range of the hyperparameters.
    """
    desirable, undesirable = parameters.desirable_weight, parameters.undesirable_weight
    return (
        min(max(bad / max(good, 1), 1), _MOST_WEIGHT) if desirable is None else desirable,
        min(max(good / max(bad, 1), 1), _MOST_WEIGHT) if undesirable is None else undesirable,
    )


def with_others(items: Sequence[Item], parameters: Hyperparameters, among: Sequence[Item] | None = None) -> list[Item]:
    """The rated answers, each with an answer to another prompt beside it.

    The other answers are those of `among` (None: of the items themselves), in an order that depends on the seed only,
    each used about as often as any other. One that doesn't fit behind the prompt is cut there: nothing is learned of
    it, it only shows how far the model has moved.

    Raises:
        DatasetInvalidError: all answer the same prompt.
    """
    rated = [item for item in items if isinstance(item, RatedAnswer)]
    donors = rated if among is None else [item for item in among if isinstance(item, RatedAnswer)]
    order = list(range(len(donors)))
    random.Random(f"{parameters.seed}:others").shuffle(order)  # noqa: S311 it decides an order and guards no secret
    parts = [_prompt_and_answer(donor.row) for donor in donors]
    prompts = [tuple(prompt) for prompt, _ in parts]
    place = {donor: position for position, donor in enumerate(order)}
    found: list[Item] = []
    for index, item in enumerate(rated):
        prompt, _ = _prompt_and_answer(item.row)
        position = place[index] if among is None else index
        other = _next_of_other_prompt(prompts, order, position, tuple(prompt))
        answer = parts[other][1][: parameters.max_length - len(prompt)]
        found.append(item._replace(other=_row(prompt, answer)))
    return found


def _next_of_other_prompt(
    prompts: Sequence[tuple[int, ...]], order: Sequence[int], position: int, prompt: tuple[int, ...]
) -> int:
    """The first donor after `position` in `order` (which goes round) whose prompt is another one."""
    for step in range(1, len(order) + 1):
        donor = order[(position + step) % len(order)]
        if prompts[donor] != prompt:
            return donor
    raise DatasetInvalidError(
        "All rated answers are to the same prompt; method kto compares answers to different ones.",
        "Add answers to other prompts, or use pairs of answers with method dpo.",
    )


def _prompt_and_answer(row: Row) -> tuple[list[int], list[int]]:
    begin = next(index for index, label in enumerate(row.labels) if label != IGNORED)
    return row.input_ids[:begin], row.input_ids[begin:]


def _by_conversation(samples: Sequence[Sample], items_of: Callable[[Sample], Iterator[Item]]) -> dict[str, list[Item]]:
    fitted: defaultdict[str, list[Item]] = defaultdict(list)
    for sample in samples:
        if items := list(items_of(sample)):
            fitted[conversation_key(sample)] += items
    return fitted


def fit_answers(
    chat: Chat,
    prompt: tuple[Message, ...],
    answers: Sequence[tuple[Message, ...]],
    tools: str | None,
    max_length: int,
    counts: FitCounts,
) -> Answered | None:
    """The prompt with each of the answers, with as many of its turns as fit; None if not even the question does."""
    cutter = _PromptCutter(chat, prompt, answers, tools, max_length)
    starts = turn_starts(prompt, len(prompt))
    if (rows := cutter.rows(starts[0])) is not None:
        return rows
    # Fewer turns are fewer tokens, so the longest prompt that fits is found by halving.
    fitting, low, high = None, 1, len(starts) - 1
    while low <= high:
        middle = (low + high) // 2
        if (rows := cutter.rows(starts[middle])) is not None:
            fitting, high = rows, middle - 1
        else:
            low = middle + 1
    if fitting is None:
        fitting = replace(cutter, keeps_system=False).rows(starts[-1])
    counts.too_long += fitting is None
    counts.shortened += fitting is not None
    return fitting


@dataclass(frozen=True)
class _PromptCutter:
    """Renders a prompt with its answers: the system prompt, if kept, and the turns from a given one on."""

    chat: Chat
    prompt: tuple[Message, ...]
    answers: Sequence[tuple[Message, ...]]
    tools: str | None
    max_length: int
    keeps_system: bool = True

    def rows(self, start: int) -> Answered | None:
        """The turns from `start` with each answer; None if one of them is longer than `max_length`."""
        head = self.prompt[: int(self.prompt[0].role == SYSTEM)] if self.keeps_system else ()
        rows = []
        for answer in self.answers:
            prompt_ids, answer_ids = self.chat.continuation(head + self.prompt[start:], answer, tools=self.tools)
            if len(prompt_ids) + len(answer_ids) > self.max_length:
                return None
            rows.append(_row(prompt_ids, answer_ids))
        return rows


def _row(prompt: list[int], answer: list[int]) -> Row:
    """The row that learns an answer and nothing of its prompt."""
    return Row([*prompt, *answer], [*[IGNORED] * len(prompt), *answer], answers=1)
