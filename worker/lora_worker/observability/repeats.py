"""Prevents that the same message is logged in every poll: only when it begins or changes, and then rarely."""

from __future__ import annotations

import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path

AGAIN_SECONDS = 1800.0
"""After this time an unchanged message is logged again."""
_MAX_KEPT = 10_000


class Repeats:
    """Remembers for each subject which message was logged last, and when.

    At most `_MAX_KEPT` subjects are remembered; the one whose message was logged longest ago is forgotten first.
    """

    def __init__(self, clock: Callable[[], float], *, again_seconds: float = AGAIN_SECONDS) -> None:
        self._clock = clock
        self._again_seconds = again_seconds
        self._said: OrderedDict[Hashable, tuple[str, float, int]] = OrderedDict()

    def is_due(self, subject: Hashable, text: str) -> bool:
        """Tell whether a message about a subject must be logged now. If so, it is remembered as logged."""
        now = self._clock()
        text_before, said_at, times = self._said.get(subject, (None, 0.0, 0))
        if text == text_before and now - said_at < self._again_seconds:
            self._said[subject] = (text, said_at, times + 1)
            return False
        self._said[subject] = (text, now, times + 1 if text == text_before else 1)
        self._said.move_to_end(subject)
        while len(self._said) > _MAX_KEPT:
            self._said.popitem(last=False)
        return True

    def clear(self, subject: Hashable) -> int:
        """Forget a subject's message, because it is no longer true; a later one is logged at once.

        Returns how often in a row the same message was offered to `is_due`.
        """
        _, _, times = self._said.pop(subject, (None, 0.0, 0))
        return times


def place_of(error: Exception) -> str:
    """Name an unexpected error by its type and place in the code. Its text is left out: it may contain private data."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
