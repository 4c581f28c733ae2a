"""Turns the dataset's file into tokenised rows: read, merge, render, mask, fit into `max_length`, hold some out.

A row that is too long loses its oldest turns, never an answer. Every answer is learned in exactly one row. An answer
that does not fit even with its question alone is left out, counted, and reported to the user.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from lora_contract.hyperparameters import Hyperparameters, Method
from lora_contract.words import counted
from lora_conversations.errors import DatasetUnusableError
from lora_conversations.examples import SYSTEM, USER, Message
from lora_conversations.identity import conversation_key, conversation_names, hold_out, shared_ids_note
from lora_conversations.preferences import Sample, all_messages
from lora_conversations.reader import Example, merge_conversations
from lora_conversations.survey import Refuse, Survey, Surveyor, accept
from lora_trainer.data.chat import Chat, Row
from lora_trainer.data.items import Item
from lora_trainer.data.serving import serving_notes
from lora_trainer.errors import DatasetInvalidError

_CHUNK_BYTES = 1 << 20
_TOKENS_NAMED = 5
"""A note for the user names at most so many control tokens."""


@dataclass
class TrainingData:
    """The tokenised items of a dataset: those to train on, and those held out for validation."""

    train: list[Item]
    validation: list[Item]
    training_ids: list[str]
    """The ids of the conversations that are trained on, sorted."""
    validation_ids: list[str]
    """The ids of the conversations that are held out, sorted."""
    skipped_lines: int
    """How many examples of the dataset can't be used."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the user about what was changed or left out."""
    validation_talks: list[int] = field(default_factory=list)
    """Of each item in `validation`: the number of its conversation, from 0."""
    held_out: list[Sample] = field(default_factory=list)
    """What `validation` was made of."""

    @property
    def answers(self) -> int:
        """How much of `batch_size` the training items fill: answers, or pairs of answers."""
        return sum(item.answers for item in self.train)

    @property
    def validation_answers(self) -> int:
        """How many answers, or pairs of answers, are held out."""
        return sum(item.answers for item in self.validation)


@dataclass
class TruncationCounts:
    """How much of a dataset was cut or left out because it is longer than `max_length`."""

    shortened: int = 0
    """Rows that lost their oldest turns or the system prompt."""
    too_long: int = 0
    """Answers that were left out."""

    def notes(self, max_length: int) -> list[str]:
        """Sentences for the user."""
        notes = []
        if self.shortened:
            what = counted(self.shortened, "row")
            notes.append(
                f"Shortened: {what} longer than max_length ({max_length} tokens) lost the oldest turns or the system "
                "prompt."
            )
        if self.too_long:
            what = counted(self.too_long, "answer")
            notes.append(
                f"Left out: {what} longer than max_length ({max_length} tokens) together with the question alone."
            )
        return notes


def prepare_data(dataset: Path, chat: Chat, parameters: Hyperparameters) -> TrainingData:
    """Read the dataset and turn it into rows; deterministic for a given seed.

    Raises:
        DatasetInvalidError: no usable example, too many bad lines, or nothing fits `max_length`.
    """
    examples, survey = load_examples(dataset, parameters.max_bad_line_share, chat.refuse)
    counts = TruncationCounts()
    fitted = _fit_conversations(chat, examples, parameters, counts)
    notes = [*counts.notes(parameters.max_length), *dataset_notes(chat, examples, survey)]
    return split(fitted, examples, parameters, skipped_lines=survey.bad, notes=notes)


def split(
    fitted: Mapping[str, Sequence[Item]],
    samples: Sequence[Sample],
    parameters: Hyperparameters,
    *,
    skipped_lines: int,
    notes: Sequence[str],
) -> TrainingData:
    """Share the items of each conversation out between training and validation.

    `fitted` holds them by the conversation's key, and `samples` is what they were made of.

    Raises:
        DatasetInvalidError: there are no items, since nothing fits `max_length`.
    """
    if not fitted:
        raise DatasetInvalidError(
            f"No example fits into max_length ({parameters.max_length} tokens).",
            "Raise max_length, or shorten the system prompt and the questions.",
        )
    # Count the answers in the items, not in the samples: an answer that was left out is on neither side.
    answers = {key: sum(item.answers for item in items) for key, items in fitted.items()}
    held_out = hold_out(answers, parameters.validation_share, parameters.seed)
    names = conversation_names(samples)
    talks = [key for key in fitted if key in held_out.keys]
    return TrainingData(
        train=[item for key, items in fitted.items() if key not in held_out.keys for item in items],
        validation=[item for key in talks for item in fitted[key]],
        training_ids=sorted(names[key] for key in fitted if key not in held_out.keys),
        validation_ids=sorted(names[key] for key in held_out.keys),
        skipped_lines=skipped_lines,
        notes=[*notes, held_out.note] if held_out.note else list(notes),
        validation_talks=[number for number, key in enumerate(talks) for _ in fitted[key]],
        held_out=[sample for sample in samples if conversation_key(sample) in held_out.keys],
    )


def _fit_conversations(
    chat: Chat, examples: Sequence[Example], parameters: Hyperparameters, counts: TruncationCounts
) -> dict[str, list[Item]]:
    """The rows of each conversation, by the conversation's key. Conversations without a row are left out."""
    merged = merge_conversations(examples) if parameters.merge_conversations else examples
    fitted: defaultdict[str, list[Item]] = defaultdict(list)
    for example in merged:
        if rows := list(fit_examples(chat, [example], parameters.max_length, counts)):
            fitted[conversation_key(example)] += rows
    return fitted


def dataset_notes(chat: Chat, examples: Sequence[Sample], survey: Survey) -> list[str]:
    """Sentences for the user about what the dataset holds, and what the base's chat template makes of it."""
    notes = []
    if survey.bad:
        what = counted(survey.bad, "example")
        notes.append(f"Left out: {what} of the dataset that can't be used. {survey.errors[0].sentence()}")
    notes += serving_notes(chat.rendering, examples)
    if shared := shared_ids_note(examples):
        notes.append(shared)
    return [*notes, *(note.text for note in survey.notes), *_token_notes(chat, examples)]


def load_examples(dataset: Path, max_bad_line_share: float, refuse: Refuse = accept) -> tuple[list[Example], Survey]:
    """What `sft` can learn from a file; see `load_samples`."""
    samples, survey = load_samples(dataset, "sft", max_bad_line_share, refuse)
    return [sample for sample in samples if isinstance(sample, Example)], survey  # for sft, all are


def load_samples(
    dataset: Path, method: Method, max_bad_line_share: float, refuse: Refuse = accept
) -> tuple[list[Sample], Survey]:
    """What a method can learn from a file, and the survey of all its lines.

    `refuse` gives the error of a sample that can be read but not trained on, or None.

    Raises:
        DatasetInvalidError: the file can't be read, or more lines are bad than `max_bad_line_share` allows.
    """
    surveyor = Surveyor(refuse, method)
    samples = list(read_samples(dataset, surveyor))
    survey = surveyor.result()
    with _naming_unusable_files():
        survey.check(max_bad_line_share)
    return samples, survey


def read_samples(dataset: Path, surveyor: Surveyor) -> Iterator[Sample]:
    """What `surveyor` finds in a file, of which one chunk is in memory at a time.

    Raises:
        DatasetInvalidError: the file can't be read.
    """
    with _naming_unusable_files():
        with dataset.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield from surveyor.feed(chunk)
        yield from surveyor.close()


@contextmanager
def _naming_unusable_files() -> Iterator[None]:
    try:
        yield
    except DatasetUnusableError as error:
        raise DatasetInvalidError(error.message, error.hint) from None


def _token_notes(chat: Chat, examples: Sequence[Sample]) -> list[str]:
    """Notes about control tokens that occur in the dataset's texts: learned as text, or as tokens."""
    as_text: Counter[str] = Counter()
    as_tokens: Counter[str] = Counter()
    for example in examples:
        as_text.update(chat.tokens.find(all_messages(example)))
        as_tokens.update(chat.tokens.find_kept(all_messages(example)))
    notes = []
    if as_text:
        notes.append(f"Texts hold special tokens of the base, which were learned as plain text: {_names(as_text)}.")
    if as_tokens:
        notes.append(f"Texts hold added tokens of the base, which were learned as these tokens: {_names(as_tokens)}.")
    return notes


def _names(tokens: Counter[str]) -> str:
    named = [f"{token} (in {counted(count, 'example')})" for token, count in tokens.most_common(_TOKENS_NAMED)]
    more = len(tokens) - len(named)
    return ", ".join(named) + (f" and {counted(more, 'other')}" if more else "")


def fit_examples(chat: Chat, examples: Sequence[Example], max_length: int, counts: TruncationCounts) -> Iterator[Row]:
    """Each example as one row; as several rows where it is too long or the template can't show all answers in one.

    Adds to `counts` what had to be cut or left out.
    """
    for example in examples:
        answers = list(example.trained)
        for row in chat.rows(example.messages, answers, tools=example.tools, weights=example.weights):
            if len(row.input_ids) <= max_length:
                yield row
            else:
                yield from _fit(_ConversationCutter(chat, example, max_length), answers[: row.answers], counts)
            answers = answers[row.answers :]


def _fit(cutter: _ConversationCutter, answers: list[int], counts: TruncationCounts) -> Iterator[Row]:
    """Rows that together teach each answer once, each with as many earlier turns as fit."""
    while answers:
        starts, taken = cutter.starts_before(answers[0]), 1
        row = cutter.row(starts[-1], answers[:1])
        if row is None:
            alone = cutter.without_system().row(starts[-1], answers[:1])
            counts.too_long += alone is None
            counts.shortened += alone is not None
            if alone is not None:
                yield alone
            answers = answers[1:]
            continue
        while taken < len(answers) and (wider := cutter.row(starts[-1], answers[: taken + 1])):
            taken, row = taken + 1, wider
        while len(starts) > 1 and (wider := cutter.row(starts[-2], answers[:taken])):
            row = wider
            starts.pop()
        counts.shortened += len(starts) > 1
        answers = answers[taken:]
        yield row


def turn_starts(messages: Sequence[Message], before: int) -> list[int]:
    """Where a conversation that ends with the answer `before` may begin, in order: at turns of the user.

    A cut between a call of a tool and its result would leave a result without its call.
    """
    return [index for index in range(before) if messages[index].role == USER] or [int(messages[0].role == SYSTEM)]


@dataclass(frozen=True)
class _ConversationCutter:
    """Cuts rows out of a conversation that is too long: the system prompt, if kept, and some consecutive turns."""

    chat: Chat
    example: Example
    max_length: int
    keeps_system: bool = True

    def starts_before(self, answer: int) -> list[int]:
        """Where a row that ends with this answer may begin, in order; see `turn_starts`."""
        return turn_starts(self.example.messages, answer)

    def without_system(self) -> _ConversationCutter:
        """The same cutter, whose rows lack the system prompt."""
        return replace(self, keeps_system=False)

    def _weights(self) -> Iterator[tuple[int, float]]:
        return zip(self.example.trained, self.example.weights, strict=bool(self.example.weights))

    def row(self, start: int, answers: list[int]) -> Row | None:
        """The turns from `start` to the last of `answers` as a row; None if they don't fit into `max_length`.

        `start` and `answers` are indices into the example's messages.
        """
        messages, tools = self.example.messages, self.example.tools
        head = messages[: int(messages[0].role == SYSTEM)] if self.keeps_system else ()
        kept = head + messages[start : answers[-1] + 1]
        weights = [weight for index, weight in self._weights() if index in answers]
        row = self.chat.row(kept, [index - start + len(head) for index in answers], tools=tools, weights=weights)
        return row if row is not None and len(row.input_ids) <= self.max_length else None
