"""How the rounds of duties repeat, what their failures lead to, and how a stop breaks them off."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Coroutine, Sequence
from typing import Any

from lora_worker.duties.duty import Duty, RoundResult
from lora_worker.duties.faults import Faults, Meaning, meaning_of, round_work
from lora_worker.duties.limits import pause_limit
from lora_worker.observability.liveness import Liveness
from lora_worker.observability.metrics import LAST_ROUND, ROUNDS
from lora_worker.observability.readiness import Readiness

_FAILED = "a round failed; see the log"


class Rounds:
    """Does rounds of duties, again and again until `stop` is set; `readiness` is told what each came to."""

    def __init__(
        self, stop: asyncio.Event, readiness: Readiness, liveness: Liveness, faults: Faults, rng: random.Random
    ) -> None:
        self._stop = stop
        self._readiness = readiness
        self._liveness = liveness
        self._faults = faults
        self._rng = rng

    async def once(self, duty: Duty) -> RoundResult:
        """Do one round; a failure is logged, told to `readiness`, and stands in the result.

        Raises:
            SchemaMismatchError: the database moved to a version that this worker does not know.
        """
        if not duty.takes_long:
            self._readiness.begin(duty.name)
        try:
            result = await duty.run_once()
        except Exception as error:
            if meaning_of(error) is Meaning.END:
                raise
            ROUNDS.labels(duty.name, "failed").inc()
            return RoundResult(failed=self.failed(duty.name, error))
        ROUNDS.labels(duty.name, "ok").inc()
        LAST_ROUND.labels(duty.name).set_to_current_time()
        self.went_well(duty.name)
        return result

    async def repeat(self, duties: Sequence[Duty]) -> None:
        """Do a round of each of these duties in turn, and again after the interval of the first, until the stop.

        Where one fails, those after it wait for the next time. Raises as `once` does.
        """
        first = duties[0]
        try:
            while not self._stop.is_set():
                for duty in duties:
                    self._liveness.expect(first.loop_name, f"the duty {duty.name}", duty.limit_seconds)
                    if (await self.once(duty)).failed is not None:
                        break
                self._liveness.expect(
                    first.loop_name, f"the loop of the duty {first.name}", pause_limit(first.interval_seconds)
                )
                # Without jitter the workers of a fleet that were started together would always ask together.
                await self.pause(first.interval_seconds * self._rng.uniform(0.9, 1.1))
        finally:
            self._liveness.forget(first.loop_name)

    async def pause(self, seconds: float) -> None:
        """Wait, but no longer than until the stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), timeout=seconds)

    async def unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this, or break it off at a stop: it must be something that may be left in the middle."""
        task, stopping = asyncio.create_task(work), asyncio.create_task(self._stop.wait())
        await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
        for late in (task, stopping):
            late.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def failed(self, name: str, error: Exception) -> str:
        """Note that a round ended with an exception; the sentence that /readyz has for it."""
        meaning = self._faults.note(round_work(name), error)
        problem = _FAILED if meaning is Meaning.BUG else str(error)
        self._readiness.end(name, problem)
        return problem

    def went_well(self, name: str) -> None:
        """Note that a round ended without an exception."""
        self._readiness.end(name)
        self._faults.over(round_work(name))
