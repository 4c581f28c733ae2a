"""Reads the tools that a row lists, and the calls of an answer, from every spelling that files use.

| spelling | tools | calls |
|---|---|---|
| OpenAI | `tools`: `{"type", "function": {…}}` | `tool_calls`: `{"id", "function": {"name", "arguments"}}` |
| OpenAI, old | `functions`: `{"name", "parameters"}` | `function_call`: `{"name", "arguments"}` |
| Anthropic | `tools`: `{"name", "input_schema"}` | parts of the kind `tool_use` (see `lora_conversations.parts`) |
| Gemini | `tools`: `{"functionDeclarations": […]}` | parts with `functionCall` |
| ShareGPT | `tools`, often as a text | turns of `function_call`, whose value is JSON (one call or a list) |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import orjson

from lora_conversations.errors import BadValueError
from lora_conversations.examples import ToolCall, kind
from lora_conversations.json_text import canonical, parse

MAX_TOOLS = 128
"""The most tools of a row, and calls of a turn. OpenAI's API has the same limit for tools."""
MAX_CHARACTERS = 256 * 1024
"""The longest list of schemas, and the longest arguments of one call: more than the context of most bases."""
_MAX_NAME_CHARACTERS = 256
_LISTS_KEPT = 32
"""Most files repeat one list of tools in every row, so the last few lists are kept, read and checked."""

TOOL_LISTS = ("tools", "functions")
"""Keys of a row that list the tools which the model may call."""
CALL_LISTS = ("tool_calls", "function_call")
"""Keys of an answer that hold its calls."""
DECLARATIONS = ("functionDeclarations", "function_declarations")
ARGUMENTS = ("arguments", "parameters", "args", "input")
_CALL = "Write each call with a name and arguments."


class ToolList(NamedTuple):
    """The tools of a row: their schemas as JSON text, and their names."""

    text: str
    names: frozenset[str]


class ToolReader:
    """Reads lists of tools. Equal lists of different rows become one object, so that they are kept once."""

    def __init__(self) -> None:
        self._read: dict[object, ToolList] = {}

    def read(self, value: Any, key: str) -> ToolList:
        """Return the tools of a list, or of a text that holds one as JSON.

        Raises:
            BadValueError: the value is no list of functions with names, or exceeds the limits.
        """
        known = _fingerprint(value)
        if known is not None and known in self._read:
            return self._read[known]
        tools = _read_list(parse(value, key) if isinstance(value, str) else value, key)
        if known is not None:
            if len(self._read) >= _LISTS_KEPT:
                self._read.clear()
            self._read[known] = tools
        return tools


def _fingerprint(value: Any) -> object:
    try:
        return value if isinstance(value, str) else orjson.dumps(value)
    except TypeError:
        return None


def _read_list(value: Any, key: str) -> ToolList:
    if not isinstance(value, list):
        raise BadValueError(key, f"is {kind(value)}, not a list of tools", "Write one object for each tool.")
    tools = [tool for index, item in enumerate(value) for tool in _read_tools(item, f"{key}[{index}]")]
    if len(tools) > MAX_TOOLS:
        raise BadValueError(key, f"lists more than {MAX_TOOLS} tools", "Keep those that the example needs.")
    names = frozenset(tool["name"] for tool in tools)
    if len(names) < len(tools):
        raise BadValueError(key, "lists two tools of one name", "Keep one of the two.")
    schemas = [{"type": "function", "function": tool} for tool in tools]
    return ToolList(canonical(schemas, key, MAX_CHARACTERS), names)


def _read_tools(item: Any, place: str) -> Iterator[dict[str, Any]]:
    """Yield the functions of one element of the list. Gemini writes several of them into one."""
    if not isinstance(item, dict):
        raise BadValueError(place, f"is {kind(item)}, not an object", "Write one object for each tool.")
    for name in DECLARATIONS:
        if isinstance(item.get(name), list):
            for index, declared in enumerate(item[name]):
                yield _read_function(declared, f"{place}.{name}[{index}]")
            return
    if item.get("type", "function") != "function":
        only = "Only functions can be trained: remove the others, and the examples that use them."
        raise BadValueError(f"{place}.type", "names a tool that is no function", only)
    if "function" in item:
        yield _read_function(item["function"], f"{place}.function")
    else:
        yield _read_function({name: value for name, value in item.items() if name != "type"}, place)


def _read_function(function: Any, place: str) -> dict[str, Any]:
    if not isinstance(function, dict):
        raise BadValueError(place, f"is {kind(function)}, not an object", "Each tool needs a name.")
    _check_name(function.get("name"), f"{place}.name")
    renamed = {"parameters" if name == "input_schema" else name: value for name, value in function.items()}
    parameters = renamed.get("parameters")
    if not isinstance(parameters, dict | None):
        schema = "Write a JSON schema, an object."
        raise BadValueError(f"{place}.parameters", f"is {kind(parameters)}, not an object", schema)
    return renamed


def _check_name(name: Any, key: str) -> None:
    if name is None:
        raise BadValueError(key, "is missing", "Each tool and each call needs the tool's name.")
    if not isinstance(name, str) or not name.strip() or len(name) > _MAX_NAME_CHARACTERS:
        short = f"Write a text of 1 to {_MAX_NAME_CHARACTERS} characters."
        raise BadValueError(key, f"is {kind(name)}, not a tool's name", short)


def read_calls(item: dict[str, Any], place: str) -> tuple[ToolCall, ...]:
    """Return the calls of an answer, from `tool_calls` or `function_call`.

    Raises:
        BadValueError: a call has no name, or arguments that are no JSON object, or the limits are exceeded.
    """
    found = [name for name in CALL_LISTS if not is_unset(item.get(name))]
    if not found:
        return ()
    if len(found) > 1:
        raise BadValueError(f"{place}.{found[1]}", "stands beside tool_calls", "Keep one of the two.")
    return calls_of(item[found[0]], f"{place}.{found[0]}")


def calls_of(value: Any, key: str) -> tuple[ToolCall, ...]:
    """Return the calls of a list, of one object, or of a text that holds one of them as JSON.

    Raises:
        BadValueError: see `read_calls`.
    """
    if isinstance(value, str):
        value = parse(value, key)
    if isinstance(value, dict):
        return (read_call(value, key),)
    if not isinstance(value, list):
        raise BadValueError(key, f"is {kind(value)}, not a list of calls", _CALL)
    if len(value) > MAX_TOOLS:
        raise BadValueError(key, f"holds more than {MAX_TOOLS} calls", "Split the turn or remove the example.")
    calls = tuple(read_call(item, f"{key}[{index}]") for index, item in enumerate(value))
    check_call_ids(calls, key)
    return calls


def check_call_ids(calls: Iterable[ToolCall], key: str) -> None:
    """Refuse calls of one turn that have the same id, since a result could not be matched with its call.

    Raises:
        BadValueError: an id occurs twice.
    """
    ids = [call.call_id for call in calls if call.call_id is not None]
    if len(set(ids)) < len(ids):
        raise BadValueError(key, "has two calls of one id", "Give each call an id of its own.")


def read_call(item: Any, place: str) -> ToolCall:
    """Return one call: name and arguments beside each other, or inside `function`.

    Raises:
        BadValueError: see `read_calls`.
    """
    if not isinstance(item, dict):
        raise BadValueError(place, f"is {kind(item)}, not an object", _CALL)
    if item.get("type", "function") not in ("function", "tool_use", "tool_call", "function_call", None):
        only = "Only functions can be trained: remove the example."
        raise BadValueError(f"{place}.type", "names a call of something that is no function", only)
    function, inner = item, place
    if as_object(item.get("function")):
        function, inner = item["function"], f"{place}.function"
    _check_name(function.get("name"), f"{inner}.name")
    key = next((name for name in ARGUMENTS if name in function), ARGUMENTS[0])
    identity = item.get("id")
    if not isinstance(identity, str | None):
        raise BadValueError(f"{place}.id", f"is {kind(identity)}, not a text", "Write the call's id as a text.")
    return ToolCall(function["name"], _read_arguments(function.get(key), f"{inner}.{key}"), identity or None)


def _read_arguments(value: Any, key: str) -> str:
    if isinstance(value, str):
        value = parse(value, key) if value.strip() else {}
    if value is None:
        value = {}
    if not isinstance(value, dict):
        named = "Write the arguments as an object, such as {“city”: “…”}, or as a text that holds one."
        raise BadValueError(key, f"is {kind(value)}, not a JSON object", named)
    return canonical(value, key, MAX_CHARACTERS)


def call_keys(call: dict[str, Any]) -> dict[str, frozenset[str]]:
    """Return the keys of a call that are used: of the object itself (under “”), and of the object `function` in it."""
    inner = as_object(call.get("function")) or call
    used = frozenset({"name", *[name for name in ARGUMENTS if name in inner][:1]})
    if inner is call:
        return {"": used | {"id", "type"}}
    return {"": frozenset({"id", "type", "function"}), "function": used}


def as_object(value: object) -> dict[str, Any]:
    """Return the value if it is an object, else an empty object."""
    return value if isinstance(value, dict) else {}


def is_unset(value: object) -> bool:
    """Tell whether a value means “nothing”. Exports write null, or an empty text or list, for keys that are unset."""
    return value is None or value in ("", "[]", "{}") or (isinstance(value, list | dict) and not value)
