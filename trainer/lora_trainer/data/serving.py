"""How an adapter has to be served so that it is asked as it was trained: sentences for the user."""

from __future__ import annotations

from collections.abc import Sequence

from lora_contract.renderings import Rendering
from lora_conversations.examples import ASSISTANT, SYSTEM
from lora_conversations.preferences import Sample, all_messages

_HISTORY = {
    "text": (
        "The base's chat template knows no thoughts, so each was learned as <think>…</think> before its answer, and "
        "earlier answers stand in the prompt without theirs: take the thought off an answer before you send it back."
    ),
    "dropped": (
        "Serve the adapter with a reasoning parser, and send earlier answers back without their thoughts: the base's "
        "chat template leaves them out, as in training."
    ),
    "last": (
        "Serve the adapter with a reasoning parser, and send earlier thoughts back as reasoning_content: "
        "the base's chat template shows those since the last turn of the user, as in training."
    ),
    "kept": (
        "Serve the adapter with a reasoning parser, and send earlier thoughts back as reasoning_content: "
        "the base's chat template shows all of them, as in training."
    ),
}
_EMPTY = (
    "The base begins each answer with a thought. Answers that have none in the dataset were learned with an empty one, "
    "so the adapter ends its thought at once; serve it with a reasoning parser, which removes the thought."
)
_EMPTY_BY_CHOICE = (
    "Answers that have no thought in the dataset were learned with an empty one, so the adapter answers at once, "
    "whether enable_thinking is true or false."
)
_SYSTEM_FOLDED = (
    "The base's chat template doesn't keep a system prompt in front, so the first user turn opens with it, "
    "followed by an empty line; prompt the adapter in the same way."
)
_TOOLS = (
    "Calls were learned as the base's chat template writes them: send the schemas of the tools with each request, and "
    "serve the adapter with the base's tool parser."
)


def serving_notes(rendering: Rendering, samples: Sequence[Sample]) -> list[str]:
    """What somebody who serves the adapter has to know about tools, thoughts and the system prompt."""
    notes = []
    if rendering.system == "first turn" and any(sample.messages[0].role == SYSTEM for sample in samples):
        notes.append(_SYSTEM_FOLDED)
    if any(sample.has_tools for sample in samples):
        notes.append(_TOOLS)
    if any(sample.has_thoughts for sample in samples):
        notes.append(_HISTORY[rendering.thoughts])
    if _has_plain_answer(samples):
        if rendering.opens_thought:
            notes.append(_EMPTY)
        elif rendering.thoughts in {"last", "kept"}:
            notes.append(_EMPTY_BY_CHOICE)
    return notes


def _has_plain_answer(samples: Sequence[Sample]) -> bool:
    return any(
        message.role == ASSISTANT and not message.thought for sample in samples for message in all_messages(sample)
    )
