"""Polls a run at once when its launcher has told that it changed.

A call is only a hint: the launcher is asked, and its answer counts. So a call that never comes costs a poll's interval,
and one too many costs a look. However many come, they wait together for the next look, at most one in two seconds.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable
from uuid import UUID

from lora_worker.configuration.tokens import RunTokens
from lora_worker.duties.duty import RoundResult
from lora_worker.duties.held_runs import HeldRuns
from lora_worker.observability.metrics import WAKE_UPS

LEAST_SECONDS_BETWEEN = 2.0
"""Between two early looks, whichever runs they are at."""
_MOST_IN_A_SECOND = 50.0
_MOST_AT_ONCE = 100.0
_CALL = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.([0-9a-f]{64})")


class WakeUps:
    """Takes the calls, in any thread, and lets the runs be polled, in the event loop in which it was made."""

    def __init__(self, tokens: RunTokens, runs: HeldRuns, clock: Callable[[], float]) -> None:
        self._tokens = tokens
        self._runs = runs
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked: set[UUID] = set()
        self._called = asyncio.Event()
        self._lock = threading.Lock()
        self._allowance, self._counted_at = _MOST_AT_ONCE, clock()

    def receive(self, call: str) -> int:
        """Take the end of a call's path, `<run id>.<signature>`; the status of its answer."""
        if not self._is_allowed():
            WAKE_UPS.labels("limited").inc()
            return 429
        found = _CALL.fullmatch(call)
        if found is None or not self._tokens.is_wake(UUID(found[1]), found[2]):
            WAKE_UPS.labels("refused").inc()
            return 404
        run_id = UUID(found[1])
        # Another worker may hold it. That one polls it in its own time; the launcher need not call again.
        is_held = run_id in self._runs.held
        WAKE_UPS.labels("taken" if is_held else "not_held").inc()
        if is_held and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ask, run_id)
        return 204

    def _is_allowed(self) -> bool:
        with self._lock:
            now = self._clock()
            gained = max(now - self._counted_at, 0.0) * _MOST_IN_A_SECOND
            self._allowance, self._counted_at = min(self._allowance + gained, _MOST_AT_ONCE), now
            if self._allowance < 1:
                return False
            self._allowance -= 1
            return True

    def _ask(self, run_id: UUID) -> None:
        self._asked.add(run_id)
        self._called.set()

    async def repeat(
        self,
        once: Callable[[Callable[[], Awaitable[RoundResult]]], Awaitable[object]],
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        """Wait for calls and poll, until it is cancelled. `once` does a round and notes its faults."""
        self._loop = asyncio.get_running_loop()
        while True:
            await self._called.wait()
            await once(self.poll)
            await pause(LEAST_SECONDS_BETWEEN)

    async def poll(self) -> RoundResult:
        """Poll the runs of which a call has told since the last time.

        Raises:
            ServiceError: the database did not take the progress.
        """
        self._called.clear()
        asked, self._asked = self._asked, set()
        return await self._runs.poll_early(asked)
