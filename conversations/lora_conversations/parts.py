"""Reads the content of a turn: a text, or a list of parts, of which some may be thoughts, calls or results of tools."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lora_conversations.errors import BadValueError
from lora_conversations.examples import ToolCall, kind
from lora_conversations.json_text import canonical
from lora_conversations.thoughts import REASONING, block_keys, block_text
from lora_conversations.tools import MAX_CHARACTERS, call_keys, read_call

_TEXT_PARTS = ("text", "input_text", "output_text")
_THOUGHT_PARTS = (*REASONING, "redacted_thinking", "reasoning.text")
_GEMINI_CALLS, _GEMINI_RESULTS = ("functionCall", "function_call"), ("functionResponse", "function_response")
_CALL_PARTS, _RESULT_PARTS = ("tool_use", "tool_call", *_GEMINI_CALLS), ("tool_result", *_GEMINI_RESULTS)
_RESULT_TEXTS = ("content", "response", "output")
_ONLY_TEXT = "Only text can be trained: remove the others."
_MEDIA = {"image": "a picture", "audio": "sound", "video": "a video", "file": "a file", "inline_data": "a file"}
WRITE_TEXT = "Write the text or remove the example."


class Result(NamedTuple):
    """The result of a tool, as a part of a turn."""

    content: str
    name: str | None
    call_id: str | None


@dataclass(slots=True)
class Content:
    """What a content holds: its text, and what stands between its parts."""

    text: str = ""
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    def check_plain(self, key: str) -> str:
        """Return the text of a content that may hold nothing else.

        Raises:
            BadValueError: it has thoughts, calls or results among its parts.
        """
        for found, what in (
            (self.thoughts, "reasoning"),
            (self.calls, "a tool call"),
            (self.results, "a tool's result"),
        ):
            if found:
                there = "Only turns of a conversation may hold it: write the example as messages."
                raise BadValueError(key, f"has {what} among its parts", there)
        return self.text


def read_text(value: Any, key: str) -> str:
    """Return a text, or the joined texts of a list of content parts.

    Raises:
        BadValueError: the value is something else, or one of its parts is not a text.
    """
    return value if isinstance(value, str) else read_content(value, key).check_plain(key)


def read_content(value: Any, key: str) -> Content:
    """Read a text, or a list of content parts.

    Raises:
        BadValueError: the value is something else, or one of its parts can't be trained.
    """
    if isinstance(value, str):
        return Content(value)
    if not isinstance(value, list) or not value:
        raise BadValueError(key, f"is {kind(value)}, not a text", WRITE_TEXT)
    content = Content()
    for index, part in enumerate(value):
        _read_part(part if isinstance(part, dict) else {}, key, f"{key}[{index}]", content)
    return content


def _read_part(part: dict[str, Any], key: str, place: str, content: Content) -> None:
    text, form = part.get("text"), part.get("type", "text")
    if part.get("thought") is True and isinstance(text, str):
        content.thoughts.append(text)
    elif form in _TEXT_PARTS and isinstance(text, str):
        content.text += text
    elif form in _THOUGHT_PARTS:
        content.thoughts.append(block_text(part, place))
    elif found := _find(part, form, _CALL_PARTS):
        content.calls.append(read_call(found, place))
    elif found := _find(part, form, _RESULT_PARTS):
        content.results.append(_read_result(found, place))
    else:
        raise _unknown_part(part, form, key)


def _find(part: dict[str, Any], form: object, names: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the object that describes a call or a result: the part itself, or what stands in it under such a name."""
    for name in names:
        if isinstance(part.get(name), dict):
            return dict(part[name])
    return part if form in names else None


def _read_result(result: dict[str, Any], place: str) -> Result:
    value = next((result[name] for name in _RESULT_TEXTS if name in result), "")
    name, call_id = result.get("name"), result.get("tool_use_id", result.get("id"))
    return Result(
        result_text(value, f"{place}.content"),
        name if isinstance(name, str) and name else None,
        call_id if isinstance(call_id, str) and call_id else None,
    )


def result_text(value: Any, key: str) -> str:
    """Return a tool's result as a text: a text or text parts as they are, everything else as JSON; null is empty.

    Raises:
        BadValueError: a part is not a text, or the JSON exceeds its limits.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) and "type" in part for part in value):
        return read_content(value, key).check_plain(key)
    return canonical(value, key, MAX_CHARACTERS)


def part_keys(part: dict[str, Any]) -> dict[str, frozenset[str]]:
    """Return the keys of a part that are used: of the part itself (under “”), and of an object in it, by its name."""
    form = part.get("type", "text")
    if part.get("thought") is True and isinstance(part.get("text"), str):
        return {"": frozenset({"type", "text", "thought"})}
    if form in _THOUGHT_PARTS:
        return {"": block_keys(part)}
    for names, keys in ((_CALL_PARTS, call_keys), (_RESULT_PARTS, _result_keys)):
        for name in names:
            if isinstance(part.get(name), dict):
                return {"": frozenset({"type", name}), name: keys(part[name])[""]}
        if form in names:
            return keys(part)
    return {"": frozenset({"type", "text"})}


def _result_keys(result: dict[str, Any]) -> dict[str, frozenset[str]]:
    value = [name for name in _RESULT_TEXTS if name in result][:1]
    identity = ["tool_use_id" if "tool_use_id" in result else "id"]
    return {"": frozenset({"type", "name", *value, *identity})}


def _unknown_part(part: dict[str, Any], form: object, key: str) -> BadValueError:
    if form == "refusal":
        return BadValueError(key, "has a refusal among its parts", "Write it as a text to train it.")
    names = [*(name for name in part if isinstance(name, str)), *([form] if isinstance(form, str) else [])]
    for word, what in _MEDIA.items():
        if any(word in name.lower().replace("inlinedata", "inline_data") for name in names):
            return BadValueError(key, f"has {what} among its parts", _ONLY_TEXT)
    return BadValueError(key, "has parts that are not text", _ONLY_TEXT)
