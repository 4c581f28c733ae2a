"""What a worker shows of itself and of its queue: its row in the database, and the gauges of its metrics."""

from __future__ import annotations

from importlib.metadata import version

import structlog

from lora_contract.redaction import redact
from lora_worker.duties.duty import RoundResult
from lora_worker.duties.held_runs import HeldRuns
from lora_worker.observability.actions import Action
from lora_worker.observability.metrics import (
    EXPIRED_LEASES,
    HOLD_KINDS,
    JOBS_HELD,
    OLDEST_WAIT_SECONDS,
    QUEUE_DEPTH,
    STRAYS,
)
from lora_worker.observability.readiness import Readiness
from lora_worker.services import Services

log = structlog.get_logger(__name__)

_MAX_PROBLEM_CHARACTERS = 300


class Presence:
    """Shows operators that this worker lives, and how its queue stands."""

    def __init__(self, services: Services, readiness: Readiness, runs: HeldRuns) -> None:
        self._services = services
        self._readiness = readiness
        self._runs = runs
        self._started_at = services.clock()
        self.is_drained = False
        """Whether an operator has asked this worker to take nothing new, and to end after its runs."""

    async def report(self, *, is_single_pass: bool = False) -> RoundResult:
        """Write this worker's row, so that a queue that nobody serves is seen to be one; hear what it is to do.

        Raises:
            ServiceError: the database did not answer.
        """
        settings, problem = self._services.settings, self._readiness.problem
        orders = await self._services.queue.report_worker(
            {
                "version": version("lora-worker"),
                "running_seconds": self._services.clock() - self._started_at,
                "slots": settings.slots,
                "held": len(self._runs.held),
                "max_per_user": settings.max_per_user,
                "problem": None if problem is None else redact(problem)[:_MAX_PROBLEM_CHARACTERS],
                "single_pass": is_single_pass,
            }
        )
        if orders["drain"] and not self.is_drained:
            log.info(
                "worker is drained: it ends after its runs", action=Action.WORKER_DRAINED, held=len(self._runs.held)
            )
            self.is_drained = True
        return RoundResult(1)

    async def watch(self) -> RoundResult:
        """Look at the schema's version, and set the gauges of the queue.

        Raises:
            SchemaMismatchError: the database moved to a version that this worker does not know.
            ServiceError: the database did not answer.
        """
        await self._services.queue.check_schema()
        health = await self._services.queue.health()
        QUEUE_DEPTH.set(health["queued"])
        OLDEST_WAIT_SECONDS.set(health["oldest_wait_seconds"] or 0)
        EXPIRED_LEASES.set(health["expired_leases"])
        STRAYS.set(health["stray_launches"])
        for kind in HOLD_KINDS:
            JOBS_HELD.labels(kind).set(
                sum(breaker["jobs"] for breaker in health["held"]["breakers"] if breaker["kind"] == kind)
            )
        return RoundResult(1)
