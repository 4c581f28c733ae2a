"""Reads the texts and turns of a conversation, and decides for each answer whether it is learned.

A message may contain more than text: a tool call, reasoning, a picture. These can't be trained yet. The message is
refused then, because learning its text without them would teach the model something else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lora_conversations.errors import BadValueError
from lora_conversations.examples import (
    ASSISTANT,
    ROLES,
    Turn,
    kind,
)

Value = dict[str, Any]

FLAGS = ("weight", "train", "loss")
"""Keys that say whether an answer or a whole row shall be learned."""
TOOL_LISTS = ("tools", "functions")
"""Keys of a row that list the tools which the model may call."""
_TOOL_CALLS = ("tool_calls", "function_call", "functionCall", "functionResponse", "tool_use", "tool_result")
_TOOL_ROLES = ("tool", "function", "observation", "function_call", "tool_call", "function_response", "tool_response")
REASONING = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks", "thought")
"""Keys of a message or a row for the model's reasoning before its answer."""
_BESIDE_TEXT = (*TOOL_LISTS, *REASONING)
_TEXT_PARTS = ("text", "input_text", "output_text")

_WITHOUT_TOOLS = (
    "Training with tools is not offered yet: remove the examples that call tools, and the list of tools elsewhere."
)
_WITHOUT_REASONING = "Training with reasoning is not offered yet: remove it to train the answer alone."
_NO = frozenset({"0", "0.0", "false"})
_YES = frozenset({"1", "1.0", "true"})


class Spelling(NamedTuple):
    """The names of the keys for role and content in the turns of a format."""

    role: str = "role"
    content: str = "content"


def as_object(value: object) -> Value:
    """Return the value if it is an object, else an empty object."""
    return value if isinstance(value, dict) else {}


def is_empty(value: object) -> bool:
    """Tell whether a value means “nothing”. Exports write null, or an empty text or list, for keys that are unset."""
    return value is None or value in ("", "[]", "{}") or (isinstance(value, list | dict) and not value)


def is_wanted(value: Value, place: str = "") -> bool:
    """Tell whether an answer or a row shall be learned, by its keys `weight`, `train` and `loss`.

    Raises:
        BadValueError: one of these keys has a value that means neither yes nor no.
    """
    wanted = True
    if value.keys().isdisjoint(FLAGS):
        return wanted
    for name in FLAGS:
        if (flag := value.get(name)) is not None:
            wanted = _read_flag(flag, f"{place}.{name}" if place else name) and wanted
    return wanted


def _read_flag(flag: object, key: str) -> bool:
    spelt = str(flag).strip().lower() if isinstance(flag, str | int | float) else ""
    if spelt in _NO:
        return False
    if spelt in _YES:
        return True
    raise BadValueError(
        key,
        "is neither 0 nor 1" if key.endswith("weight") else "is neither true nor false",
        "An answer is learned or not, nothing between: say which, or remove the key.",
    )


def check_beside_text(value: Value) -> None:
    """Refuse a row with tools or reasoning, without which its answers can't be learned correctly.

    Raises:
        BadValueError: the row lists tools or contains reasoning.
    """
    if value.keys().isdisjoint(_BESIDE_TEXT):
        return
    for name in TOOL_LISTS:
        if not is_empty(value.get(name)):
            raise BadValueError(name, "is a list of tools", _WITHOUT_TOOLS)
    _check_reasoning(value, "")


def _check_reasoning(value: Value, place: str) -> None:
    for name in REASONING:
        if not is_empty(value.get(name)):
            raise BadValueError(f"{place}.{name}" if place else name, "holds reasoning", _WITHOUT_REASONING)


def read_text(value: Any, key: str) -> str:
    """Return a text, or the joined texts of a list of content parts.

    Raises:
        BadValueError: the value is something else, or one of its parts is not a text.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        return "".join(_read_part(as_object(part), key) for part in value)
    raise BadValueError(key, f"is {kind(value)}, not a text", "Write the text or remove the example.")


def _read_part(part: Value, key: str) -> str:
    text, form = part.get("text"), part.get("type", "text")
    if form in _TEXT_PARTS and isinstance(text, str):
        return text
    if form in _TOOL_CALLS or any(name in part for name in _TOOL_CALLS):
        raise BadValueError(key, "has a tool call among its parts", _WITHOUT_TOOLS)
    if form in REASONING or form == "redacted_thinking":
        raise BadValueError(key, "has reasoning among its parts", _WITHOUT_REASONING)
    if form == "refusal":
        raise BadValueError(key, "has a refusal among its parts", "Write it as a text to train it.")
    raise BadValueError(key, "has parts that are not text", "Only text can be trained: remove the others.")


def read_turns(items: Any, key: str, spelling: Spelling | None = None, *, learn: bool = True) -> list[Turn]:
    """Read a list of turns. With `learn`, each answer is learned unless its own keys say otherwise (`is_wanted`).

    Raises:
        BadValueError: the value is not a list of turns, or one of them can't be trained.
    """
    spelling = spelling or Spelling()
    if not isinstance(items, list):
        raise BadValueError(key, f"is {kind(items)}, not a list of turns", "Write one object for each turn.")
    if not items:
        raise BadValueError(key, "is empty", "Write one object for each turn, or remove the example.")
    return [_read_turn(item, f"{key}[{index}]", spelling, learn) for index, item in enumerate(items)]


def _read_turn(item: Any, place: str, spelling: Spelling, learn: bool) -> Turn:
    if not isinstance(item, dict):
        needs = f"Each turn needs {spelling.role} and {spelling.content}."
        raise BadValueError(place, f"is {kind(item)}, not an object", needs)
    name = item.get(spelling.role)
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise _unknown_role(name, f"{place}.{spelling.role}")
    learned = learn and role == ASSISTANT
    # Most turns have only role and content. A file may have millions of them, so the other checks are skipped then.
    if len(item) > 2:
        learned = learned and is_wanted(item, place)
        _check_turn(item, place, learned)
    content = item.get(spelling.content)
    if not isinstance(content, str):
        content = _read_content(item, place, spelling)
    return Turn(place, role, content, learned)


def _check_turn(item: Value, place: str, learned: bool) -> None:
    for name in _TOOL_CALLS:
        if not is_empty(item.get(name)):
            raise BadValueError(f"{place}.{name}", "is a tool call", _WITHOUT_TOOLS)
    if learned:
        _check_reasoning(item, place)


def _read_content(item: Value, place: str, spelling: Spelling) -> str:
    key = f"{place}.{spelling.content}"
    if spelling.content not in item:
        raise BadValueError(key, "is missing", f"Each turn needs {spelling.role} and {spelling.content}.")
    if item[spelling.content] is None:
        if not is_empty(item.get("refusal")):
            raise BadValueError(key, "is null beside a refusal", "Write the refusal as the content to train it.")
        if not is_empty(item.get("audio")):
            raise BadValueError(key, "is null beside audio", "Only text can be trained: write what is said.")
    return read_text(item[spelling.content], key)


def _unknown_role(name: Any, key: str) -> BadValueError:
    if name in _TOOL_ROLES:
        return BadValueError(key, "is a tool's turn", _WITHOUT_TOOLS)
    what = "is missing" if name is None else f"is {kind(name)} that names no role"
    return BadValueError(key, what, "Use system, user or assistant.")
