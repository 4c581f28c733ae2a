"""Runs that have left a place for another one and are not launched there yet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

_ON_THE_WAY_SECONDS = 300.0
"""For how long one counts: until its launch is stopped and its job launched anew, which counts as a launch then."""


class Departures:
    """Keeps more runs of this worker from leaving for a place than it has free slots."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left_at: defaultdict[str, list[float]] = defaultdict(list)

    def book(self, place: str, free_slots: int | None) -> bool:
        """Count a run that is about to leave for a place; False where others take its free slots (None: no limit)."""
        since = self._clock() - _ON_THE_WAY_SECONDS
        self._left_at[place] = [at for at in self._left_at[place] if at > since]
        if free_slots is not None and len(self._left_at[place]) >= free_slots:
            return False
        self._left_at[place].append(self._clock())
        return True

    def give_back(self, place: str) -> None:
        """Take back the last booking: the run has stayed where it is. One that took too long counts no more anyhow."""
        if self._left_at[place]:
            self._left_at[place].pop()
