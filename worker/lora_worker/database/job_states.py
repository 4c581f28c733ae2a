"""The states of a job, as the older queue names them; what the newer one writes is read as these."""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    """How a job may stand."""

    QUEUED = "queued"
    INITIALIZING = "initializing"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


LIVE = (JobStatus.INITIALIZING, JobStatus.RUNNING)
ENDED = (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED)
"""The states that a job leaves only by being started again."""
