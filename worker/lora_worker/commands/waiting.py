"""Waits until a job has ended. `watch`, `enqueue --wait` and `deploy smoke` all wait in this way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol
from uuid import UUID

from lora_worker.commands.terminal import EXIT_JOB_FAILED
from lora_worker.database.job_reports import JobDetails
from lora_worker.database.job_states import ENDED, JobStatus
from lora_worker.errors import ArgumentError, ServiceUnavailableError

POLL_SECONDS = 2.0
_PATIENCE_SECONDS = 300.0
"""How long the database may be away before the waiting ends: a training takes hours, and its answer is worth more."""


class Asks(Protocol):
    """What the waiting needs of `DatabaseCalls`."""

    def training_job_details(self, job_id: UUID) -> Awaitable[JobDetails | None]:
        """Return everything about a job; None if there is no such job."""


async def wait_until_ended(
    queue: Asks,
    job_id: UUID,
    *,
    seen: Callable[[JobDetails], None] = lambda _: None,
    poll_seconds: float = POLL_SECONDS,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> JobDetails:
    """Poll a job until it has completed, failed or been cancelled; returns how it stands then.

    `seen` is called with each answer, the last one included. While the database is not available the waiting goes on,
    for five minutes at the most.

    Raises:
        ArgumentError: there is no such job, or it was deleted while it was waited for.
        ServiceUnavailableError: the database was not available for five minutes.
        ServiceError: the database refused the call.
    """
    answered_at = clock()
    while True:
        try:
            details = await queue.training_job_details(job_id)
        except ServiceUnavailableError:
            if clock() - answered_at > _PATIENCE_SECONDS:
                raise
        else:
            answered_at = clock()
            if details is None:
                raise ArgumentError(f"there is no job {job_id}")
            seen(details)
            if details["job"]["status"] in ENDED:
                return details
        await pause(poll_seconds)


def exit_code(details: JobDetails) -> int:
    """Return the exit code of a command that has waited for this job: 0 only if it has completed."""
    return 0 if details["job"]["status"] == JobStatus.COMPLETED else EXIT_JOB_FAILED
