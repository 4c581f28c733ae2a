"""Reads the turns of a conversation, and decides for each answer whether it is learned, and with which weight."""

from __future__ import annotations

from typing import Any, NamedTuple

from lora_conversations.errors import BadValueError
from lora_conversations.examples import ASSISTANT, ROLES, SYSTEM, TOOL, USER, ToolCall, Turn, kind
from lora_conversations.marked_calls import read_marked_calls
from lora_conversations.parts import Content, read_content, result_text
from lora_conversations.thoughts import OPENING, REASONING, read_thought, split_thought, trimmed
from lora_conversations.tools import CALL_LISTS, calls_of, check_call_ids, is_unset, read_calls
from lora_conversations.verdicts import MARKS

Value = dict[str, Any]

FLAGS = ("weight", "train", "loss")
"""Keys that say whether an answer or a whole row shall be learned, and how much (`weight`)."""
CALL_ROLES = ("function_call", "tool_call", "Function_call", "Tool_call", "FUNCTION_CALL", "TOOL_CALL")
"""Roles of ShareGPT for an answer that is nothing but calls, written as JSON."""
CALL_IDS = ("tool_call_id", "call_id", "tool_use_id")
_NO = frozenset({"0", "0.0", "false"})
_YES = frozenset({"1", "1.0", "true"})
_MARKED = "think>"
_ROLES_NAMED = "Use system, user, assistant or tool."


class Spelling(NamedTuple):
    """The names of the keys for role and content in the turns of a format."""

    role: str = "role"
    content: str = "content"


def weight_of(value: Value, place: str = "") -> float:
    """Return how much an answer or a row counts, by its keys `weight`, `train` and `loss`: from 0 (not learned) to 1.

    Raises:
        BadValueError: one of these keys has a value that means neither.
    """
    weight = 1.0
    if value.keys().isdisjoint(FLAGS):
        return weight
    for name in FLAGS:
        if (flag := value.get(name)) is not None:
            weight *= _read_flag(flag, name, f"{place}.{name}" if place else name)
    return weight


def _read_flag(flag: object, name: str, key: str) -> float:
    spelt = str(flag).strip().lower() if isinstance(flag, str | int | float) else ""
    if spelt in _NO:
        return 0.0
    if spelt in _YES:
        return 1.0
    if name != "weight":
        raise BadValueError(key, "is neither true nor false", "Say whether it shall be learned, or remove the key.")
    try:
        weight = float(spelt)
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= 1:
        again = "1 learns an answer fully, 0 not at all: write a number between, or remove the key."
        raise BadValueError(key, "is not a number from 0 to 1", again)
    return weight


def read_turns(items: Any, key: str, spelling: Spelling | None = None, *, learn: bool = True) -> list[Turn]:
    """Read a list of turns. With `learn`, each answer is learned unless its own keys say otherwise (`weight_of`).

    Raises:
        BadValueError: the value is not a list of turns, or one of them can't be trained.
    """
    spelling = spelling or Spelling()
    if not isinstance(items, list):
        raise BadValueError(key, f"is {kind(items)}, not a list of turns", "Write one object for each turn.")
    if not items:
        raise BadValueError(key, "is empty", "Write one object for each turn, or remove the example.")
    turns: list[Turn] = []
    for index, item in enumerate(items):
        turns += _read_turn(item, f"{key}[{index}]", spelling, learn)
    return read_marked_calls(turns) if TOOL in [turn.role for turn in turns] else turns


def _read_turn(item: Any, place: str, spelling: Spelling, learn: bool) -> tuple[Turn, ...]:
    if not isinstance(item, dict):
        needs = f"Each turn needs {spelling.role} and {spelling.content}."
        raise BadValueError(place, f"is {kind(item)}, not an object", needs)
    name = item.get(spelling.role)
    role = ROLES.get(name) if isinstance(name, str) else None
    content = item.get(spelling.content)
    # Most turns have only a role and a plain text. A file may have millions of them, so the rest is skipped then.
    if len(item) == 2 and isinstance(content, str):
        if role in (USER, SYSTEM):
            return (Turn(place, role, content, False),)
        if role == ASSISTANT and _MARKED not in content:
            return (Turn(place, role, content, learn),)
    if role == ASSISTANT or name in CALL_ROLES:
        return (_read_answer(item, place, spelling, learn, is_call=role is None),)
    if role is None:
        raise _unknown_role(name, f"{place}.{spelling.role}")
    if role == TOOL and spelling.content != "parts":
        return (_read_result(item, place, spelling),)
    return _read_other(item, place, spelling, role)


def _read_answer(item: Value, place: str, spelling: Spelling, learn: bool, *, is_call: bool) -> Turn:
    weight = weight_of(item, place) if learn else 0.0
    calls = read_calls(item, place)
    key = f"{place}.{spelling.content}"
    value = item.get(spelling.content)
    if is_call:
        thought, text = split_thought(value, key) if isinstance(value, str) else ("", value)
        content, calls = Content(thoughts=[thought]), (*calls_of(text, key), *calls)
    else:
        content = Content() if calls and is_unset(value) else _content_of(item, place, spelling)
    turn = answer_turn(place, key, content, calls, item, place)
    marks = None if item.keys().isdisjoint(MARKS) else item
    return turn._replace(learned=weight > 0, weight=weight, marks=marks)


def answer_turn(
    place: str,
    key: str,
    content: Content,
    calls: tuple[ToolCall, ...] = (),
    beside: Value | None = None,
    beside_place: str = "",
) -> Turn:
    """Make the turn of an answer: its text without the thought, its thought, and its calls.

    `key` is the path of the content. `beside` is the object with the keys of reasoning; `beside_place` is its path.

    Raises:
        BadValueError: the thoughts contradict each other, or a mark is not closed.
    """
    is_alone = beside is None or beside.keys().isdisjoint(REASONING)
    if is_alone and not (content.thoughts or content.calls or content.results or _MARKED in content.text):
        return Turn(place, ASSISTANT, content.text, True, calls=calls)
    if content.results:
        raise BadValueError(key, "has a tool's result among the parts of an answer", "Write it as a turn of its own.")
    inline, text = split_thought(content.text, key) if _MARKED in content.text else ("", content.text)
    parts = "\n\n".join(filter(None, map(trimmed, content.thoughts)))
    thought = read_thought(beside or {}, beside_place, ((OPENING, inline), ("its parts", parts)))
    if content.calls:
        calls = (*calls, *content.calls)
        check_call_ids(calls, key)
    return Turn(place, ASSISTANT, text, True, thought=thought, calls=calls)


def _content_of(item: Value, place: str, spelling: Spelling) -> Content:
    key = f"{place}.{spelling.content}"
    if spelling.content not in item:
        raise BadValueError(key, "is missing", f"Each turn needs {spelling.role} and {spelling.content}.")
    if item[spelling.content] is None:
        if not is_unset(item.get("refusal")):
            raise BadValueError(key, "is null beside a refusal", "Write the refusal as the content to train it.")
        if not is_unset(item.get("audio")):
            raise BadValueError(key, "is null beside audio", "Only text can be trained: write what is said.")
    return read_content(item[spelling.content], key)


def _read_result(item: Value, place: str, spelling: Spelling) -> Turn:
    key = f"{place}.{spelling.content}"
    if spelling.content not in item:
        raise BadValueError(key, "is missing", f"Each turn needs {spelling.role} and {spelling.content}.")
    name = _optional_name(item.get("name"), f"{place}.name")
    call_id = next(
        (found for key in CALL_IDS if (found := _optional_name(item.get(key), f"{place}.{key}")) is not None), None
    )
    return Turn(place, TOOL, result_text(item[spelling.content], key), False, name=name, call_id=call_id)


def _optional_name(value: Any, key: str) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise BadValueError(key, f"is {kind(value)}, not a text", "Write it as a text.")
    return value


def _read_other(item: Value, place: str, spelling: Spelling, role: str) -> tuple[Turn, ...]:
    """Read a turn of the user or the system; results of tools among its parts become turns of their own."""
    for name in CALL_LISTS:
        if not is_unset(item.get(name)):
            raise BadValueError(
                f"{place}.{name}", "is a call in a turn that is no answer", "Give it the role assistant."
            )
    content = _content_of(item, place, spelling)
    key = f"{place}.{spelling.content}"
    results = tuple(
        Turn(place, TOOL, result.content, False, name=result.name, call_id=result.call_id) for result in content.results
    )
    content.results = []
    text = content.check_plain(key)
    if role == TOOL or (results and not text.strip()):
        return results
    return (*results, Turn(place, role, text, False))


def _unknown_role(name: Any, key: str) -> BadValueError:
    what = "is missing" if name is None else f"is {kind(name)} that names no role"
    return BadValueError(key, what, _ROLES_NAMED)
