"""The questions that pages ask the database, and what they do to it: the same calls as the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from lora_worker.dashboard.reads import Reading, SharedReads
from lora_worker.dashboard.results import Answers, side_by_side
from lora_worker.database.calls import DatabaseCalls
from lora_worker.database.job_reports import JobDetails, JobFilter, JobPage
from lora_worker.database.money_rows import BudgetState, CostKey, Costs, Failures
from lora_worker.database.queue_health import QueueHealth
from lora_worker.database.version_rows import AliasRow
from lora_worker.errors import ArtifactError
from lora_worker.storage.evaluations import Evaluations
from lora_worker.storage.run_logs import RunLogs
from lora_worker.versions.listing import Family, families_of, list_versions

_SELDOM_SECONDS = 15.0
"""For what changes seldom: sums over many rows, kept logs."""
_FIXED_SECONDS = 300.0
"""For what never changes, and may be deleted."""


class Board:
    """What all pages read, through one `SharedReads`."""

    def __init__(
        self,
        queue: DatabaseCalls,
        logs: RunLogs,
        evaluations: Evaluations,
        reads: SharedReads | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.queue, self._logs, self._evaluations = queue, logs, evaluations
        self.now = now
        self.reads = reads or SharedReads(now=now)

    async def health(self) -> Reading[QueueHealth]:
        """Read the state of the queue."""
        return await self.reads.ask("health", self.queue.health)

    async def jobs(self, limit: int, wanted: JobFilter) -> Reading[JobPage]:
        """Read a page of at most `limit` jobs, newest first."""
        asked: JobFilter = {**wanted, "limit": limit}
        question = ("jobs", json.dumps(asked, sort_keys=True))
        return await self.reads.ask(question, lambda: self.queue.list_training_jobs(asked))

    async def job(self, job_id: UUID) -> Reading[JobDetails | None]:
        """Read all that is known of a job; the value is None without a problem if there is none of this id."""
        return await self.reads.ask(("job", job_id), lambda: self.queue.training_job_details(job_id))

    async def log(self, user_id: UUID, run_id: UUID) -> Reading[list[str] | None]:
        """Read the kept log of a run that has ended; the value is None without a problem if none was kept."""
        return await self.reads.ask(("log", run_id), lambda: self._logs.read(user_id, run_id), _SELDOM_SECONDS)

    async def answers(self, user_id: UUID, run_id: UUID) -> Reading[Answers]:
        """Read what base and adapter have answered. It never changes, and a file is much larger than what is shown."""

        async def read() -> Answers:
            try:
                found = await self._evaluations.samples(user_id, run_id)
            except ArtifactError as error:
                return Answers(None, str(error))
            return Answers(side_by_side(found) if found else None)

        return await self.reads.ask(("answers", run_id), read, _FIXED_SECONDS)

    async def models(self, limit: int) -> Reading[list[Family]]:
        """Read the newest versions of models, at most so many, by model."""

        async def read() -> list[Family]:
            return families_of(await list_versions(self.queue, {"limit": limit}))

        return await self.reads.ask(("models", limit), read, _SELDOM_SECONDS)

    async def aliases(self) -> Reading[list[AliasRow]]:
        """Read where the aliases lead and stand."""
        return await self.reads.ask("aliases", self.queue.list_training_aliases)

    async def budgets(self) -> Reading[BudgetState]:
        """Read the budgets of today, and what is used of them."""
        return await self.reads.ask("budgets", self.queue.training_budget_state, _SELDOM_SECONDS)

    async def costs(self, days: int, by: CostKey) -> Reading[list[Costs]]:
        """Read the costs of the last days, today included, summed by `day`, `user` or `model`."""
        return await self.reads.ask(
            ("costs", days, by), lambda: self.queue.training_costs(self._since(days), self.now(), by), _SELDOM_SECONDS
        )

    async def failures(self, days: int) -> Reading[list[Failures]]:
        """Read the failures of the last days, by code."""
        return await self.reads.ask(
            ("failures", days), lambda: self.queue.training_failures(self._since(days)), _SELDOM_SECONDS
        )

    def _since(self, days: int) -> datetime:
        """Return the beginning of the first of these days, by UTC."""
        today = self.now().astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        return today - timedelta(days=days - 1)
