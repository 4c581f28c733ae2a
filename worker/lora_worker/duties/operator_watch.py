"""Tells operators of conditions that only they can end: held jobs, no GPU, a used budget, a worker that is not ready.

A condition is told when it begins, and again every six hours while it lasts. Every worker sees most of them, so each is
claimed in the database first, and one worker tells it. While the database is away nobody can claim; then each worker
tells by itself that it is not ready.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lora_contract.words import counted
from lora_worker.database.queue_health import QueueHealth
from lora_worker.duties.duty import RoundResult
from lora_worker.errors import ServiceError
from lora_worker.observability.outbox import NoticeKind, OperatorNotice
from lora_worker.observability.readiness import Readiness
from lora_worker.services import Services

AGAIN_SECONDS = 6 * 3600
UNREADY_SECONDS = 300.0
"""A worker that is not ready for less is not worth a notice: a database may restart."""
_MAX_NAME_CHARACTERS = 120
_BUDGETS = ("the day's budget for all trainings", "its user's budget for a day")
"""How the reason of a job that waits for a budget begins (`training_fits_budget` in SQL)."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that operators are told of, once for its key."""

    key: str
    notice: OperatorNotice


def conditions_of_queue(health: QueueHealth) -> Iterator[Condition]:
    """What the state of the queue says that operators should know of."""
    for breaker in health["held"]["breakers"]:
        what = f"the base model {breaker['name'][:_MAX_NAME_CHARACTERS]}" if breaker["name"] else "the endpoint's image"
        yield Condition(
            f"jobs_held {breaker['kind']} {breaker['name']} {breaker['endpoint']}"[:300],
            OperatorNotice(
                NoticeKind.JOBS_HELD,
                "Training jobs are held",
                f"Held jobs: {breaker['jobs']}. For {counted(breaker['users'], 'user')} {what} failed "
                f"({breaker['error_code']}). One job tries it again after a while; `lora-worker resume` releases all.",
                "failure",
            ),
        )
    for problem in health["held"]["endpoint_problems"]:
        yield Condition(
            f"no_gpu {problem['endpoint']}"[:300],
            OperatorNotice(
                NoticeKind.NO_GPU,
                "No GPU gets ready",
                f"{problem['endpoint']}: {problem['problem']}",
            ),
        )
    for budget in _BUDGETS:
        waiting = sum(job["waits_for"].startswith(budget) for job in health["waiting"])
        if waiting:
            yield Condition(
                f"budget_reached {budget}",
                OperatorNotice(
                    NoticeKind.BUDGET_REACHED,
                    "A budget is reached",
                    f"Jobs that wait for {budget}: {waiting}. They start by themselves when there is room; a new day "
                    "begins at midnight (UTC). One that costs more than a whole day's budget needs a higher one: "
                    "`lora-worker budget set`.",
                ),
            )


class OperatorWatch:
    """Looks for such conditions, and posts a notice of each that is new."""

    def __init__(self, services: Services, readiness: Readiness) -> None:
        self._services = services
        self._readiness = readiness
        self._unready_since: float | None = None
        self._told: dict[str, float] = {}

    async def run_once(self) -> RoundResult:
        """Look once, and tell what is new.

        Raises:
            ServiceError: the database did not answer; that this worker is not ready is told all the same.
        """
        await self.look_at_worker()
        told = 0
        for condition in conditions_of_queue(await self._services.queue.health()):
            told += await self._tell(condition)
        return RoundResult(told)

    async def look_at_worker(self) -> None:
        """Tell that this worker is not ready, if that lasts."""
        problem, now = self._readiness.problem, self._services.clock()
        if problem is None:
            self._unready_since = None
            return
        if self._unready_since is None:
            self._unready_since = now
        if now - self._unready_since >= UNREADY_SECONDS:
            name = self._services.settings.name
            text = f"The worker {name} has not been ready for {(now - self._unready_since) / 60:.0f} minutes: {problem}"
            notice = OperatorNotice(NoticeKind.WORKER_NOT_READY, "A training worker is not ready", text, "failure")
            await self._tell(Condition(f"worker_not_ready {name}", notice))

    async def _tell(self, condition: Condition) -> bool:
        now = self._services.clock()
        self._told = {key: at for key, at in self._told.items() if now - at < AGAIN_SECONDS}
        if condition.key in self._told:
            return False
        try:
            is_ours = await self._services.queue.claim_operator_notice(condition.key, AGAIN_SECONDS)
        except ServiceError:
            # Nobody can claim it, so each worker tells what it knows.
            is_ours = True
        self._told[condition.key] = now
        if is_ours:
            self._services.outbox.post(condition.notice)
        return is_ours
