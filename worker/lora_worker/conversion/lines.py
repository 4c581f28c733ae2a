"""Writes what was read as JSON Lines: messages as OpenAI spells them, pairs as its preference files, thumbs as labels.

The reader of datasets makes the same samples of these lines as it made of the file that was converted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from lora_conversations.examples import ASSISTANT, Example, Message, ToolCall
from lora_conversations.preferences import Preference, Sample


def as_line(sample: Sample) -> str:
    """Return a sample as a line of the new file, with its line break."""
    return json.dumps(_as_object(sample), ensure_ascii=False) + "\n"


def _as_object(sample: Sample) -> dict[str, Any]:
    identity = {"conversation_id": sample.conversation_id} if sample.conversation_id else {}
    tools = {"tools": json.loads(sample.tools)} if sample.tools else {}
    if isinstance(sample, Preference):
        return {
            "input": {"messages": _messages(sample.prompt), **tools},
            "preferred_output": _messages(sample.chosen),
            "non_preferred_output": _messages(sample.rejected),
            **identity,
        }
    if isinstance(sample, Example):
        return {"messages": _weighted(sample), **tools, **identity}
    return {"messages": _messages(sample.messages), "label": sample.good, **tools, **identity}


def _weighted(example: Example) -> list[dict[str, Any]]:
    """The messages, with the weight of each answer that is not learned as a whole."""
    messages = _messages(example.messages)
    weights = dict(zip(example.trained, example.weights or (1.0,) * len(example.trained), strict=True))
    for index, message in enumerate(example.messages):
        weight = weights.get(index, 0)
        if message.role == ASSISTANT and weight != 1:
            messages[index]["weight"] = weight
    return messages


def _messages(messages: Iterable[Message]) -> list[dict[str, Any]]:
    return [_message(message) for message in messages]


def _message(message: Message) -> dict[str, Any]:
    written: dict[str, Any] = {"role": message.role, "content": message.content or (None if message.calls else "")}
    if message.thought:
        written["reasoning_content"] = message.thought
    if message.calls:
        written["tool_calls"] = [_call(call) for call in message.calls]
    if message.name is not None:
        written["name"] = message.name
    if message.call_id is not None:
        written["tool_call_id"] = message.call_id
    return written


def _call(call: ToolCall) -> dict[str, Any]:
    named = {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    return named if call.call_id is None else {"id": call.call_id, **named}
