"""How many calls of one kind go side by side, and how many in ten seconds: as many as the other side takes."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

WINDOW_SECONDS = 10.0
_FIRST_BOUND = 16


class PausedError(Exception):
    """The other side asked for a pause, which is not over. `seconds` are left of it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"asked to wait {seconds:.0f} s")
        self.seconds = seconds


class CallLimit:
    """A bound that adapts: it grows while calls are taken, and is halved when one is refused as one too many.

    The rule is TCP's: one more for each call until the first refusal, one more for each full round after it
    (Chiu and Jain, "Analysis of the increase and decrease algorithms", 1989). `calls` go in any ten seconds at
    most, however quick each of them is.
    """

    def __init__(
        self,
        *,
        most: int,
        calls: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.most = most
        self.bound: float = min(_FIRST_BOUND, most)
        self._clock, self._sleep = clock, sleep
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._recent: deque[float] = deque(maxlen=calls)
        self._refused_once = False
        self._shrunk_at = self._paused_until = float("-inf")

    @asynccontextmanager
    async def place(self) -> AsyncIterator[float]:
        """Wait for a place and hold it; the moment when the call began, for `refused`.

        Raises:
            PausedError: the other side wants no calls now.
        """
        self._check_pause()
        await self._enter()
        try:
            await self._wait_for_turn()
            self._check_pause()
            yield self._clock()
        finally:
            self._leave()

    def taken(self) -> None:
        """A call was answered: there may be room for more, where this many were wanted."""
        if self._running >= int(self.bound):
            self.bound = min(self.bound + (1 / self.bound if self._refused_once else 1), self.most)

    def refused(self, began_at: float, *, pause_seconds: float | None = None) -> None:
        """A call was one too many. Those that began before the last such answer say nothing new."""
        now = self._clock()
        self._paused_until = max(self._paused_until, now + (pause_seconds or 0.0))
        if began_at >= self._shrunk_at:
            self.bound, self._shrunk_at, self._refused_once = max(self.bound / 2, 1.0), now, True

    def _check_pause(self) -> None:
        left = self._paused_until - self._clock()
        if left > 0:
            raise PausedError(left)

    async def _enter(self) -> None:
        if self._running < int(self.bound):
            self._running += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self._leave()
            raise

    def _leave(self) -> None:
        self._running -= 1
        while self._waiting and self._running < int(self.bound):
            place = self._waiting.popleft()
            if not place.done():
                self._running += 1
                place.set_result(None)

    async def _wait_for_turn(self) -> None:
        now = self._clock()
        is_full = len(self._recent) == self._recent.maxlen
        turn = max(now, self._recent[0] + WINDOW_SECONDS) if is_full else now
        self._recent.append(turn)
        if turn > now:
            await self._sleep(turn - now)
