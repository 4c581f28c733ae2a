"""Estimates how long the examples of a file are, and shows them with their roles, where no tokenizer is at hand."""

from __future__ import annotations

from lora_contract.lengths import RENDERED_EXAMPLES, Lengths, LengthTally, Rendered, cut_parts
from lora_conversations.examples import Example, Message, call_texts
from lora_conversations.preferences import Preference, Rating, Sample
from lora_conversations.survey import estimate_tokens

_TOKENS_PER_MESSAGE = 4


class LengthEstimator:
    """Adds up the estimated lengths of samples, and keeps the first of them to show."""

    def __init__(self, max_length: int) -> None:
        self._tally = LengthTally(max_length)
        self._shown = 0
        self._rendered: list[Rendered] = []

    def add(self, sample: Sample) -> None:
        """Add the sequences of a sample."""
        for messages in sequences_of(sample):
            self._tally.add(_estimate(messages, sample.tools))
        if self._shown < RENDERED_EXAMPLES:
            self._shown += 1
            self._rendered += render_roles(sample)

    def result(self) -> Lengths:
        """Return the lengths so far."""
        return self._tally.result("estimate", self._rendered)


def sequences_of(sample: Sample) -> list[tuple[Message, ...]]:
    """Return the conversations that a sample trains on: both of a pair, else one."""
    if isinstance(sample, Preference):
        return [sample.messages, sample.prompt + sample.rejected]
    return [sample.messages]


def _estimate(messages: tuple[Message, ...], tools: str | None) -> int:
    texts = [text for message in messages for text in (message.content, message.thought, *call_texts(message))]
    tokens = sum(map(estimate_tokens, texts)) + _TOKENS_PER_MESSAGE * len(messages)
    return round(tokens + (estimate_tokens(tools) if tools else 0))


def render_roles(sample: Sample) -> list[Rendered]:
    """Show a sample with the roles of its messages; of a pair, once with each answer."""
    if isinstance(sample, Example):
        return [_rendered(sample, "", sample.messages, set(sample.trained))]
    if isinstance(sample, Rating):
        title = "thumb up" if sample.good else "thumb down"
        return [_rendered(sample, title, sample.messages, {len(sample.messages) - 1})]
    sides = zip(("chosen", "rejected"), sequences_of(sample), strict=True)
    return [_rendered(sample, title, messages, {len(messages) - 1}) for title, messages in sides]


def _rendered(sample: Sample, title: str, messages: tuple[Message, ...], learned: set[int]) -> Rendered:
    texts = [
        part
        for index, message in enumerate(messages)
        for part in ((f"{message.role}: ", False), (_shown(message), index in learned), ("\n", False))
    ]
    return Rendered(line=sample.line, title=title, parts=cut_parts(texts))


def _shown(message: Message) -> str:
    calls = (f"{call.name}({call.arguments})" for call in message.calls)
    thought = f"<think>{message.thought}</think>" if message.thought else ""
    return "\n".join(filter(None, (thought, message.content, *calls)))
