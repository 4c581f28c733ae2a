"""What preference tuning learns from: pairs of a better and a worse answer, and single answers with a thumb."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lora_conversations.examples import Example, Message, uses_tools


class Preference(NamedTuple):
    """Two answers to one prompt, of which `chosen` is the better one.

    `prompt` ends with a turn of the user or of a tool. `chosen` and `rejected` each begin with an answer; further turns
    follow only where a file's sides have several. `tools`, `line` and `opening` are as in `Example`.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: str | None
    conversation_id: str | None
    line: int
    opening: str | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation with the better answer."""
        return self.prompt + self.chosen

    @property
    def has_tools(self) -> bool:
        """Tell whether the pair can only be rendered by a template that knows tools."""
        return uses_tools((*self.messages, *self.rejected), self.tools)

    @property
    def has_thoughts(self) -> bool:
        """Tell whether an answer has reasoning before it."""
        return any(message.thought for message in (*self.messages, *self.rejected))


class Rating(NamedTuple):
    """A conversation whose last answer somebody found good (`good`) or bad."""

    messages: tuple[Message, ...]
    good: bool
    tools: str | None
    conversation_id: str | None
    line: int
    opening: str | None = None

    @property
    def has_tools(self) -> bool:
        """Tell whether the conversation can only be rendered by a template that knows tools."""
        return uses_tools(self.messages, self.tools)

    @property
    def has_thoughts(self) -> bool:
        """Tell whether an answer has reasoning before it."""
        return any(message.thought for message in self.messages)


def all_messages(sample: Example | Preference | Rating) -> Iterator[Message]:
    """Yield the messages of a sample, with both answers of a pair."""
    yield from sample.messages
    if isinstance(sample, Preference):
        yield from sample.rejected


Sample = Example | Preference | Rating
"""What a dataset yields: one of the three kinds, by the method that is trained."""
