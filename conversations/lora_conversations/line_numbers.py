"""On which line of a JSON text a value stands."""

from __future__ import annotations

import json
import re

_SPACE = re.compile(r"[ \t\r\n]*")
_PATH_PART = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
_decode_value = json.JSONDecoder().raw_decode


def lines_before(text: str, key: str) -> int:
    """Count the line breaks of a valid JSON text before the value at the path `key`, such as `turns[2].role`.

    If a part of the path does not exist, the value that should contain it is used.
    """
    position = _skip(text, 0)
    for index, name in _PATH_PART.findall(key):
        position = _find_child(text, position, int(index) if index else name)
    return text.count("\n", 0, position)


def _find_child(text: str, start: int, wanted: int | str) -> int:
    opening = text[start]
    if opening not in "{[":
        return start
    position = _skip(text, start + 1)
    index = 0
    while text[position] not in "]}":
        name: int | str = index
        if opening == "{":
            name, position = _decode_value(text, position)
            position = _skip(text, _skip(text, position) + 1)
        if name == wanted:
            return position
        position = _skip(text, _decode_value(text, position)[1])
        if text[position] == ",":
            position = _skip(text, position + 1)
        index += 1
    return start


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position
