"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """The number with its noun: `1 answer`, `2 answers`, `1,200 answers`."""
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"
