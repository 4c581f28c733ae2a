"""Launches that no live run owns: stopped, one way or another, until their launcher says that they ended."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from trainer.crashpoints import reach
from worker.launchers.base import LaunchState
from worker.services import Services

log = structlog.get_logger(__name__)

_MAX_STRAYS = 100


class Reconciler:
    """Stops strays, in a loop of its own: nobody's training waits for them."""

    def __init__(self, services: Services, stop: asyncio.Event) -> None:
        self._services = services
        self._stop = stop
        # With the launcher away each stray waits for its time-outs, and the runs' polls need calls too.
        self._places = asyncio.Semaphore(max(1, services.settings.launcher_concurrency // 2))

    async def round(self) -> None:
        """Look at every stray once: cancel it, or note that it has ended.

        Raises:
            ServiceError: the database did not answer; the strays are still there in the next round.
        """
        strays = await self._services.queue.stray_launches(_MAX_STRAYS)
        looked = await asyncio.gather(*(self._look(stray["external_job_id"]) for stray in strays))
        closed = [report for report in looked if report]
        if closed:
            await self._services.queue.close_launches(closed)

    async def _look(self, external_job_id: str) -> dict[str, Any] | None:
        """What to note of a stray that has ended; None while it has not, or nobody knows."""
        async with self._places:
            if self._stop.is_set():
                return None
            try:
                return await self._end(external_job_id)
            except Exception:
                # The others are not to pay for it.
                log.exception("work on a stray failed", external_job_id=external_job_id)
                return None

    async def _end(self, external_job_id: str) -> dict[str, Any] | None:
        launcher = self._services.launcher
        reach("worker.stray.before")
        observation = await launcher.observe(external_job_id)
        ended = observation.ended or observation.state is LaunchState.MISSING
        # A launcher that does not answer a look takes no cancel either.
        if not ended and observation.state is not LaunchState.UNKNOWN:
            asked = await launcher.cancel(external_job_id)
            log.info("stray launch cancelled", external_job_id=external_job_id, asked=asked)
        reach("worker.stray.after")
        if not ended:
            return None
        return {"external_job_id": external_job_id, "gpu_seconds": observation.execution_seconds or 0.0}
