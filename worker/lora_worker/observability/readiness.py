"""Whether this worker lives, and whether it does its work: what /healthz and /readyz answer.

Both are asked from another thread than the event loop's, so that an answer comes when that one hangs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from uuid import UUID

_BEAT_SECONDS = 1.0
_HUNG_SECONDS = 30.0
"""Nothing that this worker does keeps the event loop for as long; what takes time runs in threads."""

_FAILURES_IN_A_ROW = 3


class Pulse:
    """The beat of the event loop: a hung one does not beat."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beaten_at = clock()

    def beat(self) -> None:
        """Say that the loop turns."""
        self._beaten_at = self._clock()

    async def keep(self) -> None:
        """Beat for as long as the loop turns; ends by cancelling."""
        while True:
            self.beat()
            await asyncio.sleep(_BEAT_SECONDS)

    @property
    def problem(self) -> str | None:
        """Why this process should be started anew; None while it lives."""
        silent = self._clock() - self._beaten_at
        return None if silent < _HUNG_SECONDS else f"the event loop has not turned for {silent:.0f} s"


class Readiness:
    """What keeps the worker from its work: rounds that fail or don't end, runs that can't be settled."""

    def __init__(self, clock: Callable[[], float], *, stuck_seconds: float) -> None:
        self._clock = clock
        self._stuck_seconds = stuck_seconds
        self._faults: dict[str, str] = {"start": "starting"}
        self._begun: dict[str, float] = {}
        self._unsettled: dict[UUID, int] = {}
        self._settling_fault = ""
        self._idle_rounds = 0
        self._idle_fault = ""

    def begin(self, name: str) -> None:
        """A round begins that should end soon."""
        self._begun[name] = self._clock()

    def end(self, name: str, problem: str | None = None) -> None:
        """A round has ended, well or with a problem."""
        self._begun.pop(name, None)
        if problem is None:
            self._faults.pop(name, None)
        else:
            self._faults[name] = problem

    def fault(self, name: str) -> str | None:
        """The problem with which a round last ended; None where it ended well."""
        return self._faults.get(name)

    def settling_failed(self, run_id: UUID, problem: str) -> None:
        """A run has ended and its end could not be written."""
        self._unsettled[run_id] = self._unsettled.get(run_id, 0) + 1
        self._settling_fault = problem

    def settled(self) -> None:
        """A run was settled: the others may be, too."""
        self._unsettled.clear()

    def forget(self, run_id: UUID) -> None:
        """The run is another worker's."""
        self._unsettled.pop(run_id, None)

    def note_runs(self, put_off: list[str | None]) -> None:
        """Take what a round of all held runs came to: for each, why it was put off, or None."""
        if put_off and all(put_off):
            self._idle_rounds += 1
            self._idle_fault = put_off[0] or ""
        else:
            self._idle_rounds = 0

    @property
    def problem(self) -> str | None:
        """Why this worker does not do its work; None while it does."""
        if self._faults:
            return next(iter(list(self._faults.values())), None)
        failures = sum(list(self._unsettled.values()))
        if failures >= _FAILURES_IN_A_ROW:
            return f"no run could be settled, {failures} times in a row: {self._settling_fault}"
        if self._idle_rounds >= _FAILURES_IN_A_ROW:
            return f"no run could be worked on in {self._idle_rounds} rounds: {self._idle_fault}"
        now = self._clock()
        stuck = [f"the round {name} has not ended for {now - since:.0f} s"
                 for name, since in list(self._begun.items()) if now - since > self._stuck_seconds]  # fmt: skip
        return stuck[0] if stuck else None
