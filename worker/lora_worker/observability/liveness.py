"""Decides whether this process is alive (/healthz): whether its event loop turns, and whether its duties go on.

A process that is not alive should be restarted. It is asked from another thread than the event loop's, so that it
answers even if that hangs. The clock does not run on while the machine sleeps, when nothing could go on either.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

_BEAT_SECONDS = 1.0
_HUNG_SECONDS = 30.0
"""After this long without a beat the event loop counts as hung. Long computations run in other threads."""


class Pulse:
    """Shows that the event loop is running: a task on it beats once a second, which it can't do if the loop hangs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beaten_at = clock()

    def beat(self) -> None:
        """Record that the event loop runs now."""
        self._beaten_at = self._clock()

    async def keep(self) -> None:
        """Beat once a second, until this task is cancelled."""
        while True:
            self.beat()
            await asyncio.sleep(_BEAT_SECONDS)

    @property
    def problem(self) -> str | None:
        """Why this process should be restarted; None while it is alive."""
        silent = self._clock() - self._beaten_at
        return None if silent < _HUNG_SECONDS else f"the event loop has not turned for {silent:.0f} s"


@dataclass(frozen=True, slots=True)
class _Expected:
    """The next sign of life that a loop of duties owes."""

    what: str
    since: float
    limit_seconds: float


class Liveness:
    """Watches the loops of duties: each says by when its next sign of life comes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._expected: dict[str, _Expected] = {}
        self._resting: dict[str, _Expected] = {}

    def expect(self, loop: str, what: str, limit_seconds: float) -> None:
        """Record a sign of life of this loop, which now does `what`, and gives its next sign within the limit."""
        self._resting.pop(loop, None)
        self._expected[loop] = _Expected(what, self._clock(), limit_seconds)

    def beat(self, loop: str) -> None:
        """Record that the loop goes on with what it does: its limit counts from now. Without `expect` nothing."""
        expected = self._resting.pop(loop, None) or self._expected.get(loop)
        if expected is not None:
            self.expect(loop, expected.what, expected.limit_seconds)

    def rest(self, loop: str) -> None:
        """Record that the loop waits for other work of this worker, which may take any time, until its next beat."""
        expected = self._expected.pop(loop, None)
        if expected is not None:
            self._resting[loop] = expected

    def forget(self, loop: str) -> None:
        """Record that the loop has ended, as it should."""
        self._expected.pop(loop, None)
        self._resting.pop(loop, None)

    @property
    def problem(self) -> str | None:
        """Which loop hangs; None while all go on."""
        now = self._clock()
        for expected in list(self._expected.values()):
            silent = now - expected.since
            if silent > expected.limit_seconds:
                limit = f"its limit is {expected.limit_seconds:.0f} s"
                return f"{expected.what} has given no sign of life for {silent:.0f} s; {limit}"
        return None
