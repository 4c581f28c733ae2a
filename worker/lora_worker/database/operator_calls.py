"""The calls with which operators look at jobs and act on them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from lora_worker.database import functions
from lora_worker.database.answers import ResumedHold
from lora_worker.database.caller import Caller
from lora_worker.database.job_reports import DrainedWorker, JobDetails, JobFilter, JobPage, RetryAnswer
from lora_worker.database.queue_health import QueueHealth
from lora_worker.deployment.fleet import FinishedAdapters


class OperatorCalls(Caller):
    """What the command line and the dashboard ask of the database."""

    async def health(self) -> QueueHealth:
        """Return the state of the queue: its depth, live runs, workers, and why each waiting job waits."""
        return await self._call(functions.QUEUE_HEALTH)

    async def estimate_job(self, job_id: UUID) -> dict[str, Any] | None:
        """Estimate time and cost of a job as the application does; None if no estimate is possible."""
        return await self._call(functions.ESTIMATE_TRAINING_JOB, job_id=job_id)

    async def list_training_jobs(self, wanted: JobFilter) -> JobPage:
        """List the jobs of both queues that the filter asks for, newest first.

        Raises:
            ServiceRefusedError: a value of the filter can't be read.
        """
        return await self._call(functions.LIST_TRAINING_JOBS, filter=dict(wanted))

    async def training_job_details(self, job_id: UUID) -> JobDetails | None:
        """Return everything about a job of either queue; None if there is no such job."""
        return await self._call(functions.TRAINING_JOB_DETAILS, job_id=job_id)

    async def finished_adapters(self) -> list[FinishedAdapters]:
        """Return how many adapters can still be called, by base model and rank: the 100 most frequent kinds."""
        return await self._call(functions.TRAINING_FINISHED_ADAPTERS)

    async def cancel_training_job(self, job_id: UUID) -> bool:
        """Cancel a job; False if it had ended or does not exist. A worker stops its GPU in its next cycle."""
        return await self._call(functions.CANCEL_TRAINING_JOB, job_id=job_id)

    async def retry_training_job(self, job_id: UUID) -> RetryAnswer:
        """Start a job again that has failed or was cancelled."""
        return await self._call(functions.RETRY_TRAINING_JOB, job_id=job_id)

    async def resume_training(self, named: str | None) -> list[ResumedHold]:
        """Release jobs that are held for the base model or endpoint `named`, or all with None; returns the holds."""
        return await self._call(functions.RESUME_TRAINING, named=named)

    async def hold_training(self, user_id: UUID | None, reason: str | None) -> bool:
        """Let nothing new of a user be claimed, or of anybody with None, until it is released. Live runs go on."""
        return await self._call(functions.HOLD_TRAINING, user_id=user_id, reason=reason)

    async def release_training(self, user_id: UUID | None) -> bool:
        """Release what `hold_training` held for this user, or for all with None; False if nothing was held so."""
        return await self._call(functions.RELEASE_TRAINING, user_id=user_id)

    async def drain_training_workers(self, name: str | None) -> list[DrainedWorker]:
        """Tell the workers of this name, or all with None, to take nothing new and to end after their runs."""
        return await self._call(functions.DRAIN_TRAINING_WORKERS, name=name)
