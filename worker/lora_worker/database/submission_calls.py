"""The calls with which people without the application queue jobs and find their artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from lora_worker.database import functions
from lora_worker.database.caller import Caller
from lora_worker.database.submission_rows import (
    FoundAdapter,
    FoundUser,
    PublishedRun,
    StoredFile,
    Submitted,
    TrialRemoval,
)


class SubmissionCalls(Caller):
    """The methods of `DatabaseCalls` for people without the application. They raise only `ServiceError`s."""

    async def find_training_user(self, named: str) -> FoundUser | None:
        """Find a user by id or mail address; None if there is none."""
        return await self._call(functions.FIND_TRAINING_USER, named=named)

    async def submit_training_job(self, dataset: Mapping[str, Any], job: Mapping[str, Any]) -> Submitted | None:
        """Add a job, and its dataset where it is missing, from the columns of their tables; repeated without effect.

        None if the user is missing, or the dataset belongs to somebody else or was deleted.
        """
        return await self._call(functions.SUBMIT_TRAINING_JOB, entry={"dataset": dict(dataset), "job": dict(job)})

    async def training_published_run(self, job_id: UUID) -> PublishedRun | None:
        """Return which run of a job published its artifact; None if there is no such job."""
        return await self._call(functions.TRAINING_PUBLISHED_RUN, job_id=job_id)

    async def training_init_adapter(self, user_id: UUID, named: UUID) -> FoundAdapter | None:
        """Return which adapter of the user an id of a model or a job means; None if the user has none of this id."""
        return await self._call(functions.TRAINING_INIT_ADAPTER, user_id=user_id, named=named)

    async def training_ended_trials(self) -> list[UUID]:
        """Return the jobs of former trials (`deploy smoke`) that have ended and were not removed."""
        return await self._call(functions.TRAINING_ENDED_TRIALS)

    async def training_trial_files(self, job_id: UUID) -> list[StoredFile]:
        """Return the stored files of a trial: its dataset, and what its runs uploaded."""
        return await self._call(functions.TRAINING_TRIAL_FILES, job_id=job_id)

    async def remove_training_trial(self, job_id: UUID) -> TrialRemoval:
        """Remove all rows of a trial that has ended. A job that is no trial stays untouched."""
        return await self._call(functions.REMOVE_TRAINING_TRIAL, job_id=job_id)
