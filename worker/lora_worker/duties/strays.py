"""Stray launches: those that no live run owns. Each is cancelled until its launcher says that it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from lora_contract.crash_points import crash_point
from lora_worker.database.answers import Stray
from lora_worker.duties.duty import RoundResult, no_sign
from lora_worker.duties.faults import Faults, stray_work
from lora_worker.launchers.base import LaunchState
from lora_worker.observability.actions import Action
from lora_worker.runs.state.whereabouts import Whereabouts
from lora_worker.services import Services

log = structlog.get_logger(__name__)

_MAX_STRAYS = 100
_MOST_TOGETHER = 8
STRAY_CALLS = 10
"""Calls that are made for one stray, one after another: looks at some endpoints, and a cancel."""


class Reconciler:
    """Stops stray launches. It is a duty of its own, so that no training waits for it."""

    def __init__(self, services: Services, stop: asyncio.Event, *, beat: Callable[[], None] = no_sign) -> None:
        self._services = services
        self._beat = beat
        self._stop = stop
        self._faults = Faults(services.repeats)
        # While the launcher is away each stray takes until its time-out, and the polls of runs need connections, too.
        self._places = asyncio.Semaphore(_MOST_TOGETHER)

    async def run_once(self) -> RoundResult:
        """Look at every stray once: cancel it, or write down that it has ended.

        Raises:
            ServiceError: the database did not answer; the strays are still there in the next round.
        """
        strays = await self._services.queue.stray_launches(_MAX_STRAYS)
        looked = await asyncio.gather(*(self._look(stray) for stray in strays if self._is_ours(stray)))
        closed = [report for report in looked if report]
        if closed:
            await self._services.queue.close_launches(closed)
        return RoundResult(len(closed))

    def _is_ours(self, stray: Stray) -> bool:
        """Whether one of this worker's launchers made it: another launcher's launches are left alone."""
        problem = self._services.places.left_alone(stray["launcher"])
        if problem:
            self._say(stray, problem)
        return problem is None

    def _say(self, stray: Stray, problem: str) -> None:
        external_job_id = stray["external_job_id"]
        if self._services.repeats.is_due((external_job_id, "stray"), problem):
            log.warning(
                "a stray launch is left", action=Action.STRAY_LEFT, external_job_id=external_job_id, problem=problem
            )

    async def _look(self, stray: Stray) -> dict[str, Any] | None:
        """What to write down of a stray that has ended; None while it has not, or while that is unknown."""
        async with self._places:
            if self._stop.is_set():
                return None
            self._beat()
            work = stray_work(stray["external_job_id"])
            try:
                report = await self._end(stray)
            except Exception as error:
                # It is noted here, so that the other strays of the round are closed all the same.
                self._faults.note(work, error)
                return None
            self._faults.over(work)
            return report

    async def _end(self, stray: Stray) -> dict[str, Any] | None:
        external_job_id, noted = stray["external_job_id"], stray["endpoint"]
        whereabouts = Whereabouts.of(self._services.places, stray["endpoints"])
        crash_point("worker.stray.before")
        observation, whereabouts = await whereabouts.observe(external_job_id, noted, age_seconds=stray["age_seconds"])
        ended = observation.ended or observation.state is LaunchState.MISSING
        if observation.state is LaunchState.UNKNOWN:
            # A launcher that does not answer this question would not answer a cancel either.
            self._say(stray, whereabouts.unseen(external_job_id, noted, observation) or "")
        elif not ended:
            asked = await whereabouts.cancel(external_job_id, noted)
            if not asked:
                guide = self._services.places.guide_of(whereabouts.ref(external_job_id, noted).endpoint)
                self._say(stray, f"its end was refused, and is asked for again: see {guide.console}")
            elif self._services.repeats.is_due((external_job_id, "cancel"), str(asked)):
                log.info(
                    "stray launch cancelled",
                    action=Action.STRAY_CANCELLED,
                    external_job_id=external_job_id,
                    asked=asked,
                )
        crash_point("worker.stray.after")
        if not ended:
            return None
        seconds = observation.execution_seconds if observation.billed_seconds is None else observation.billed_seconds
        return {"external_job_id": external_job_id, "gpu_seconds": seconds or 0.0}
