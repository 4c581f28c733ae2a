"""Files that are accepted, each with what is learned from it, and files that are refused by one method.

What is learned is written in one line a sample, by `say`: `user: x | *answer: y` is a question with a learned answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_conversations.examples import ASSISTANT, Message
from lora_conversations.preferences import Preference, Rating, Sample
from tests.corpus.builders import bad_line, lines

if TYPE_CHECKING:
    from lora_contract.hyperparameters import Method


@dataclass(frozen=True)
class Reading:
    """`learned`: a line for each sample. `errors`: sentences of bad lines. `notes`: what the user is told."""

    name: str
    content: bytes
    learned: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    method: Method | None = "sft"


def learns(
    name: str, value: object, *learned: str, notes: tuple[str, ...] = (), method: Method | None = "sft"
) -> Reading:
    """A file of one line, or of the lines of a list, that is accepted."""
    return Reading(name, lines(*(value if isinstance(value, list) else [value])), learned, notes, method=method)


def refuses(name: str, value: object, key: str | None, error: str, hint: str = "", method: Method = "sft") -> Reading:
    """A file of one line, which is refused."""
    return Reading(name, lines(value), errors=(bad_line(1, key, error, hint),), method=method)


def unused(*names: str) -> str:
    """The note on keys that are not used, each of which occurs once."""
    return f"Keys that are not used: {', '.join(name if '(' in name else f'{name} (1 ×)' for name in names)}."


def say(sample: Sample) -> str:
    """Write in one line what is learned."""
    tools = f"[{sample.tools}] " if sample.tools else ""
    if isinstance(sample, Preference):
        sides = f" + {_say(sample.chosen)} - {_say(sample.rejected)}"
        return f"{tools}{_say(sample.prompt)}{sides}"
    if isinstance(sample, Rating):
        return f"{tools}{_say(sample.messages)} {'up' if sample.good else 'down'}"
    weights = dict(zip(sample.trained, sample.weights or (1,) * len(sample.trained), strict=True))
    return f"{tools}{_say(sample.messages, weights)}"


def _say(messages: tuple[Message, ...], weights: dict[int, float] | None = None) -> str:
    return " | ".join(_say_message(message, (weights or {}).get(index)) for index, message in enumerate(messages))


def _say_message(message: Message, weight: float | None) -> str:
    learned = "" if weight is None else "*" if weight == 1 else f"*{weight:g} "
    role = "answer" if message.role == ASSISTANT else message.role
    named = f" {message.name}" if message.name else ""
    answers = f"#{message.call_id}" if message.call_id else ""
    thought = f"<{message.thought}>" if message.thought else ""
    calls = "".join(
        f" → {call.name}{call.arguments}{f'#{call.call_id}' if call.call_id else ''}" for call in message.calls
    )
    return f"{learned}{role}{named}{answers}: {thought}{message.content}{calls}"
