"""What the database answers to people without the application: users, queued jobs and published runs."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from typing_extensions import TypedDict

TRIAL_NAME = "lora-worker smoke"
"""The name of a trial's dataset (`deploy smoke`), by which the database knows what may be removed."""


class FoundUser(TypedDict):
    """Answer of `find_training_user`."""

    user_id: UUID
    email: str | None
    is_operator: bool
    """Whether it is the operator's own user, as the service role has made it."""


class Submitted(TypedDict):
    """Answer of `submit_training_job`."""

    job_id: UUID
    dataset_id: UUID


class PublishedRun(TypedDict):
    """Answer of `training_published_run`."""

    queue: Literal["training_jobs", "pipeline_training_jobs"]
    job_id: UUID
    user_id: UUID | None
    status: str
    run_id: UUID | None
    """The run whose verified artifact is stored; None if the job has none."""


class FoundAdapter(TypedDict):
    """Answer of `training_init_adapter`."""

    run_id: UUID | None
    """The run whose verified artifact is stored; None if there is none."""
    queue: Literal["training_jobs", "pipeline_training_jobs"]
    job_id: UUID
    model_id: UUID | None
    """The row of `model_artifacts`; jobs of the newer queue have none."""
    status: str
    """`ready`, `deleted`, `foreign` (another program has completed the job), or that of a job without an adapter."""


class StoredFile(TypedDict):
    """An object in a bucket (`training_trial_files`)."""

    bucket: str
    name: str


class TrialRemoval(TypedDict):
    """Answer of `remove_training_trial`."""

    removed: bool
    reason: str | None
    """Why the rows are still there, as a clause."""
