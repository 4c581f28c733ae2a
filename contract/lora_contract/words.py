"""Numbers in sentences, and sentences that fit where they are read."""

from __future__ import annotations


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """The number with its noun: `1 answer`, `2 answers`, `1,200 answers`."""
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"


def shorten(text: str, characters: int) -> str:
    """The text, cut after a whole word where it is longer than `characters`."""
    if len(text) <= characters:
        return text
    return text[: characters - 2].rsplit(" ", 1)[0] + " …"


def joined(message: str, hint: str | None) -> str:
    """What is wrong and what to do about it, as one text."""
    return f"{message} {hint}" if hint else message
