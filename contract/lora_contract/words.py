"""Small helpers for sentences that users read."""

from __future__ import annotations

import re
from typing import Final

_FORMS: Final = {
    "missing": "is missing",
    "extra_forbidden": "is no key there",
    "string_pattern_mismatch": "is not of the form that belongs there",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "set_type": "must be a list",
}
"""What a person is told instead of pydantic's text, which shows expressions and classes of Python."""


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Write a number with its noun: `1 answer`, `2 answers`, `1,200 answers`."""
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"


def shorten(text: str, characters: int) -> str:
    """Cut a text that is longer than `characters` after a whole word, and mark the cut with “…”."""
    if len(text) <= characters:
        return text
    return text[: characters - 2].rsplit(" ", 1)[0] + " …"


def fault_words(kind: str, message: str) -> str:
    """Say as the end of a sentence what pydantic found wrong: `type` and `msg` of one of its problems."""
    if kind == "value_error":
        return message.removeprefix("Value error, ").removesuffix(".")
    words = _FORMS.get(kind) or re.sub(r"^[A-Z][a-z]+ should ", "must ", message)
    words = words.replace(" after validation", "").removesuffix(".")
    return words[:1].lower() + words[1:]


def joined(message: str, hint: str | None) -> str:
    """Join what is wrong and what to do about it into one text."""
    return f"{message} {hint}" if hint else message
