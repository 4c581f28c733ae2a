"""Counts what a conversion could not take, by reason, in bounded memory and without any text of the file."""

from __future__ import annotations

import re
from dataclasses import dataclass

_MOST_REASONS = 30
_OTHER = "other reasons"
_DIGITS = re.compile(r"\d+")


@dataclass(slots=True)
class LeftOut:
    """One reason why something was left out, how often, and where first (a line, row or element, from 1)."""

    reason: str
    count: int
    first: int


class Tally:
    """Counts by reason. Reasons that differ only in a number are one; further ones than thirty are counted together."""

    def __init__(self) -> None:
        self._found: dict[str, LeftOut] = {}

    def add(self, reason: str, first: int, count: int = 1) -> None:
        """Count something that is left out because of `reason`, met at the line, row or element `first`."""
        # Numbers in reasons are positions and lengths: with them every row would be a reason of its own.
        reason = _DIGITS.sub("…", reason)
        if reason not in self._found and len(self._found) >= _MOST_REASONS:
            reason = _OTHER
        known = self._found.get(reason)
        if known is None:
            self._found[reason] = LeftOut(reason, count, first)
        else:
            known.count += count

    def result(self) -> list[LeftOut]:
        """Return the reasons, the most frequent first."""
        return sorted(self._found.values(), key=lambda left: (-left.count, left.first))
