"""JSON inside a dataset's values: parsed with its limits, and written in one spelling.

A file may write the arguments of a call, or a list of tools, as JSON or as a text that holds JSON. Both must give the
same tokens, so both are parsed and written again by `canonical`.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from lora_conversations.errors import BadValueError

MAX_DEPTH = 64
"""The deepest nesting of arguments and schemas. Deeper ones would exceed Python's recursion limit in a template."""


class KeyWatch:
    """A JSON parser that notices if an object has the same key twice."""

    def __init__(self) -> None:
        self.doubled: str | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._build)

    def decode(self, text: str, start: int = 0) -> tuple[Any, int]:
        """Parse the value that begins at `start`; returns it and the index after its end, and sets `doubled`.

        Raises:
            ValueError: the text is not JSON, or is incomplete.
            RecursionError: the value is nested too deeply.
        """
        self.doubled = None
        return self._decoder.raw_decode(text, start)

    def _build(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) < len(pairs):
            self.doubled = Counter(key for key, _ in pairs).most_common(1)[0][0]
        return built


def reason(error: Exception) -> str:
    """Describe the error of a JSON parser without repeating any of the dataset's text."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"


def parse(text: str, key: str) -> Any:
    """Parse a text of the dataset that shall hold one JSON value.

    Raises:
        BadValueError: the text is not JSON, or an object in it has a key twice.
    """
    watch = KeyWatch()
    stripped = text.strip()
    try:
        value, end = watch.decode(stripped)
        if end < len(stripped):
            raise json.JSONDecodeError("Extra data", stripped, end)
    except (ValueError, RecursionError) as error:
        again = "Write it as JSON, or as the value itself."
        raise BadValueError(key, f"is a text that is not valid JSON ({reason(error)})", again) from None
    if watch.doubled is not None:
        raise BadValueError(key, "is a text with an object that has a key twice", "Keep one of the two.")
    return value


def canonical(value: Any, key: str, most_characters: int) -> str:
    """Write a value as JSON with the usual separators, in the order of its keys.

    Raises:
        BadValueError: the value is too long, nested too deeply, or holds NaN or Infinity.
    """
    if is_deeper(value, MAX_DEPTH):
        raise BadValueError(key, f"is nested more than {MAX_DEPTH} levels deep", "Write it flatter.")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise BadValueError(key, "holds NaN or Infinity, which JSON has not", "Write a number or null.") from None
    if len(text) > most_characters:
        raise BadValueError(key, f"is longer than {most_characters:,} characters", "Shorten it or remove the example.")
    return text


def is_deeper(value: Any, limit: int) -> bool:
    """Tell whether lists and objects are nested more than `limit` levels deep, without recursion."""
    level = [value]
    for _ in range(limit):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return False
    return any(isinstance(value, dict | list) for value in level)
