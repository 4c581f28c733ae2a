"""Launches that no live run owns: stopped, one way or another, until their launcher says that they ended."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from lora_contract.crash_points import crash_point
from lora_worker.database.functions import Stray
from lora_worker.duties.sweeping import Sweeper
from lora_worker.launchers.base import LaunchState
from lora_worker.runs.whereabouts import Whereabouts, left_alone
from lora_worker.services import Services

log = structlog.get_logger(__name__)

_MAX_STRAYS = 100
_MOST_TOGETHER = 8


class Reconciler:
    """Stops strays, in a loop of its own: nobody's training waits for them."""

    def __init__(self, services: Services, stop: asyncio.Event) -> None:
        self._services = services
        self._stop = stop
        self._sweeper = Sweeper(services)
        # With the launcher away each stray waits for its time-outs, and the runs' polls need calls too.
        self._places = asyncio.Semaphore(_MOST_TOGETHER)

    async def round(self) -> None:
        """Look at every stray once: cancel it, or note that it has ended. And sweep abandoned uploads away.

        Raises:
            ServiceError: the database did not answer; the strays are still there in the next round.
        """
        strays = await self._services.queue.stray_launches(_MAX_STRAYS)
        looked = await asyncio.gather(*(self._look(stray) for stray in strays if self._is_ours(stray)))
        closed = [report for report in looked if report]
        if closed:
            await self._services.queue.close_launches(closed)
        await self._sweeper.round()

    def _is_ours(self, stray: Stray) -> bool:
        """Whether this worker can look at it: what another launcher made is left alone."""
        problem = left_alone(stray["launcher"], self._services.launcher)
        if problem:
            self._say(stray, problem)
        return problem is None

    def _say(self, stray: Stray, problem: str) -> None:
        external_job_id = stray["external_job_id"]
        if self._services.repeats.is_due((external_job_id, "stray"), problem):
            log.warning("a stray launch is left", external_job_id=external_job_id, problem=problem)

    async def _look(self, stray: Stray) -> dict[str, Any] | None:
        """What to note of a stray that has ended; None while it has not, or nobody knows."""
        async with self._places:
            if self._stop.is_set():
                return None
            try:
                return await self._end(stray)
            except Exception:
                # The others are not to pay for it.
                log.exception("work on a stray failed", external_job_id=stray["external_job_id"])
                return None

    async def _end(self, stray: Stray) -> dict[str, Any] | None:
        external_job_id, noted = stray["external_job_id"], stray["endpoint"]
        whereabouts = Whereabouts.of(self._services.launcher, stray["endpoints"])
        crash_point("worker.stray.before")
        observation, whereabouts = await whereabouts.observe(external_job_id, noted, age_seconds=stray["age_seconds"])
        ended = observation.ended or observation.state is LaunchState.MISSING
        if observation.state is LaunchState.UNKNOWN:
            # A launcher that does not answer a look takes no cancel either.
            self._say(stray, whereabouts.unseen(external_job_id, noted, observation) or "")
        elif not ended:
            asked = await whereabouts.cancel(external_job_id, noted)
            if self._services.repeats.is_due((external_job_id, "cancel"), str(asked)):
                log.info("stray launch cancelled", external_job_id=external_job_id, asked=asked)
        crash_point("worker.stray.after")
        if not ended:
            return None
        return {"external_job_id": external_job_id, "gpu_seconds": observation.execution_seconds or 0.0}
