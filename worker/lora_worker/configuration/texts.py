"""How the text of an environment variable becomes a value, before pydantic checks it."""

from __future__ import annotations

from typing import Any


def split_list(value: Any) -> Any:
    """Split the text of a comma-separated variable into its items; a value that is no text is returned unchanged."""
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


def none_if_empty(value: Any) -> Any:
    """None for an empty text, which is what a variable without a value holds; any other value as it is."""
    return None if value == "" else value
