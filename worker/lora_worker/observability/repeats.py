"""What is true in every cycle is logged when it begins or changes, and then at a slow rate."""

from __future__ import annotations

import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path

AGAIN_SECONDS = 1800.0
_MAX_KEPT = 10_000


class Repeats:
    """Remembers what was said of whom, and when. By this worker's clock; the longest unsaid is forgotten first."""

    def __init__(self, clock: Callable[[], float], *, again_seconds: float = AGAIN_SECONDS) -> None:
        self._clock = clock
        self._again_seconds = again_seconds
        self._said: OrderedDict[Hashable, tuple[str, float, int]] = OrderedDict()

    def is_due(self, subject: Hashable, text: str) -> bool:
        """Whether this is to be said of the subject now; if so, it counts as said."""
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
        """It is over: should it come again, it is said at once. How often in a row it was met, said or not."""
        _, _, times = self._said.pop(subject, (None, 0.0, 0))
        return times


def place_of(error: Exception) -> str:
    """What tells one bug from another, without its values: they may be somebody's text."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
