"""Counts the tokens of a dataset's sequences with a base model's tokenizer, and renders the first examples.

Nothing is trained and no weights are needed. One chunk of the file is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

from lora_contract.hyperparameters import Hyperparameters
from lora_contract.lengths import RENDERED_EXAMPLES, Lengths, LengthTally, Rendered, cut_parts
from lora_conversations.examples import Example
from lora_conversations.preferences import Preference, Rating, Sample
from lora_conversations.survey import Surveyor
from lora_trainer.data.chat import IGNORED, Chat
from lora_trainer.data.preferences import FitCounts, fit_answers
from lora_trainer.data.rows import TruncationCounts, fit_examples, read_samples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_EXAMPLES = 20_000
"""Of a longer file only so many examples are counted: a minute of tokenising."""

_Sequence = tuple[list[int], list[bool]]
"""Token ids, and which of them are learned."""


def preview(dataset: Path, tokenizer: PreTrainedTokenizerBase, chosen: Hyperparameters) -> Lengths:
    """Count the tokens of each sequence as it is rendered for training, before overlapping examples are merged.

    Raises:
        DatasetInvalidError: the file can't be read at all.
        BaseModelUnknownError: answers can't be rendered for training.
    """
    chat, tally, counts = Chat(tokenizer), LengthTally(chosen.max_length), (TruncationCounts(), FitCounts())
    rendered: list[Rendered] = []
    samples = read_samples(dataset, Surveyor(chat.refuse, chosen.method))
    for number, sample in enumerate(islice(samples, MOST_EXAMPLES)):
        sequences = list(_sequences(chat, sample))
        for _, (ids, _) in sequences:
            tally.add(len(ids))
        _count_cuts(chat, sample, [ids for _, (ids, _) in sequences], chosen.max_length, counts)
        if number < RENDERED_EXAMPLES:
            rendered += [_render(tokenizer, sample.line, title, sequence) for title, sequence in sequences]
    return tally.result(
        "tokenizer",
        rendered,
        shortened=sum(count.shortened for count in counts),
        left_out=sum(count.too_long for count in counts),
        is_complete=next(samples, None) is None,
    )


def _sequences(chat: Chat, sample: Sample) -> Iterator[tuple[str, _Sequence]]:
    """The sequences of a sample, each with its title."""
    if isinstance(sample, Preference):
        for title, answer in (("chosen", sample.chosen), ("rejected", sample.rejected)):
            yield title, _joined(*chat.continuation(sample.prompt, answer, tools=sample.tools))
    elif isinstance(sample, Rating):
        title = "thumb up" if sample.good else "thumb down"
        yield title, _joined(*chat.continuation(sample.messages[:-1], sample.messages[-1:], tools=sample.tools))
    else:
        for row in chat.rows(sample.messages, sample.trained, tools=sample.tools, weights=sample.weights):
            yield "", (row.input_ids, [label != IGNORED for label in row.labels])


def _joined(prompt: list[int], answer: list[int]) -> _Sequence:
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def _count_cuts(
    chat: Chat,
    sample: Sample,
    sequences: list[list[int]],
    max_length: int,
    counts: tuple[TruncationCounts, FitCounts],
) -> None:
    """Fit a sample that is too long as its method does, which counts what that costs."""
    if max(map(len, sequences), default=0) <= max_length:
        return
    rows, answers = counts
    if isinstance(sample, Example):
        for _ in fit_examples(chat, [sample], max_length, rows):
            pass
    elif isinstance(sample, Preference):
        fit_answers(chat, sample.prompt, (sample.chosen, sample.rejected), sample.tools, max_length, answers)
    else:
        fit_answers(chat, sample.messages[:-1], (sample.messages[-1:],), sample.tools, max_length, answers)


def _render(tokenizer: PreTrainedTokenizerBase, line: int, title: str, sequence: _Sequence) -> Rendered:
    spans = groupby(zip(*sequence, strict=True), key=lambda token: token[1])
    parts = [(str(tokenizer.decode([token for token, _ in tokens])), learned) for learned, tokens in spans]
    return Rendered(line=line, title=title, parts=cut_parts(parts))
