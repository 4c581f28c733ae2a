"""What a base's chat template can't show, so that the example is refused before anything is trained on it."""

from __future__ import annotations

from collections.abc import Callable

from lora_contract.renderings import Rendering
from lora_conversations.control_tokens import THOUGHT_MARKS, WRITE_OTHERWISE, Marks
from lora_conversations.errors import LineError
from lora_conversations.preferences import Sample, all_messages

_NO_TOOLS = (
    "uses tools, which the base's chat template does not show",
    "Choose a base model whose chat template takes tools, or remove the example.",
)
_ONE_CALL = (
    "calls several tools in one answer, and the base's chat template shows one call an answer",
    "Give each call its own answer and result, or choose another base model.",
)
_NO_TEXT = (
    "has a text beside a call of a tool, which the base's chat template leaves out",
    "Remove the text, or choose another base model.",
)
_THOUGHT_IN_THOUGHT = "holds “<think>” or “</think>” within a thought, where it can't be told from the thought's end"


def refusal_of(rendering: Rendering | None) -> Callable[[Sample], LineError | None]:
    """Return what refuses the examples that a base can't be trained on; `rendering` is None where nothing is known."""
    marks = Marks(rendering.marks if rendering else ())

    def refuse(sample: Sample) -> LineError | None:
        reason = _beyond(rendering, sample) if rendering else None
        reason = reason or _thought_fault(sample)
        return LineError(sample.line, None, *reason) if reason else marks.refuse(sample)

    return refuse


def _beyond(rendering: Rendering, sample: Sample) -> tuple[str, str] | None:
    """What the template can't show of this example, and what to do about it."""
    if not sample.has_tools:
        return None
    if not rendering.takes_tools:
        return _NO_TOOLS
    calling = [message for message in all_messages(sample) if message.calls]
    if not rendering.several_calls and any(len(message.calls) > 1 for message in calling):
        return _ONE_CALL
    if not rendering.text_beside_calls and any(message.content.strip() for message in calling):
        return _NO_TEXT
    return None


def _thought_fault(sample: Sample) -> tuple[str, str] | None:
    thoughts = (message.thought for message in all_messages(sample) if message.thought)
    if any(mark in thought for thought in thoughts for mark in THOUGHT_MARKS):
        return _THOUGHT_IN_THOUGHT, WRITE_OTHERWISE
    return None
