"""Small helpers for sentences that users read."""

from __future__ import annotations


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Write a number with its noun: `1 answer`, `2 answers`, `1,200 answers`."""
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"


def shorten(text: str, characters: int) -> str:
    """Cut a text that is longer than `characters` after a whole word, and mark the cut with “…”."""
    if len(text) <= characters:
        return text
    return text[: characters - 2].rsplit(" ", 1)[0] + " …"


def joined(message: str, hint: str | None) -> str:
    """Join what is wrong and what to do about it into one text."""
    return f"{message} {hint}" if hint else message
