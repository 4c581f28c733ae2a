"""The rows of jobs, runs and datasets as the database returns them, parsed into Python values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_contract.object_names import object_key
from lora_contract.words import fault_words
from lora_worker.database.job_keys import misspelt_key
from lora_worker.errors import PreflightError

_ROW = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


_SHARED_BUCKET = "training-files"
"""The bucket that every signed-in user may read. In all others each user has a folder named by the user's id."""


class Dataset(BaseModel):
    """The columns of a row of `datasets` that the worker reads."""

    model_config = _ROW

    id: UUID
    name: str
    user_id: UUID | None = None
    """None if a job of the newer queue names a file that belongs to no row of `datasets`."""
    status: str | None = None
    training_ready: bool | None = None
    storage_bucket: str | None = None
    storage_path: str
    format: str | None = None
    file_size: int | None = None
    error_message: str | None = None
    """Why the validation failed."""
    deleted_at: str | None = None
    """Not parsed: only whether it is set matters, and Postgres has dates that Python can't represent."""

    @property
    def bucket(self) -> str:
        """The bucket of the row, or the application's default if the row names none."""
        return self.storage_bucket or "lora-datasets"

    def is_readable_by(self, user_id: UUID | None) -> bool:
        """Tell whether the user may read the dataset's file.

        The worker reads with the secret key, which may read every file, and users may write bucket and path into their
        own rows. Without this check a user could read anybody's file by naming it in a dataset.
        """
        if self.user_id not in {None, user_id}:
            return False
        # The check uses the same normalised name with which the file is read.
        key = object_key(self.storage_path)
        return key is not None and (self.bucket == _SHARED_BUCKET or key.split("/")[0] == str(user_id))


class DatasetClaim(BaseModel):
    """A dataset that this worker may validate until its lease expires."""

    model_config = _ROW

    dataset: Dataset
    lease_token: UUID
    attempts: int
    """How many workers have begun to read the dataset, this one included."""
    unreadable: str | None = None
    """Which columns of the row are too large to be returned, in the words of the SQL function."""


class Job(BaseModel):
    """The columns of a job that the worker reads. Jobs of both queues have the shape of `training_jobs` here.

    The JSON columns contain whatever the application wrote; `parse_hyperparameters` and `parse_gpu_config` check them.
    """

    model_config = _ROW

    id: UUID
    user_id: UUID
    dataset_id: UUID | None = None
    """None if a job of the newer queue names only a file."""
    preset_id: str | None = None
    hyperparameters: Any = None
    gpu_config: Any = None
    status: str | None = None
    total_epochs: int | None = None
    total_steps: int | None = None


class Run(BaseModel):
    """A row of `training_runs`, with totals of the job's earlier runs."""

    model_config = _ROW

    id: UUID
    queue: Literal["training_jobs", "pipeline_training_jobs"] = "training_jobs"
    """The table that holds the job."""
    job_id: UUID
    user_id: UUID
    attempt: int
    status: str
    lease_token: UUID
    token_sha256: str | None = Field(default=None, repr=False)
    """The sha256 of the token with which the run was launched; None before its first launch."""
    launcher: str | None = None
    endpoint: str | None = None
    """The endpoint of the launch with the id `external_job_id`."""
    endpoints: list[str] = Field(default_factory=list)
    """All endpoints at which the run was launched, the latest first."""
    external_job_id: str | None = None
    checked_in_at: datetime | None = None
    last_seen_at: datetime | None = None
    withdrawn_at: datetime | None = None
    """When it was taken from an endpoint without a GPU; its trainers are refused since, and its launch is stopped."""
    used_seconds: float | None = None
    """From the trainer's check-in to its last heartbeat."""
    created_at: datetime | None = None
    launched_at: datetime | None = None
    handlings: int = 0
    transient_failures: int = 0
    infrastructure_failures: int = 0
    launches: int = 0
    posted_seconds_ago: float | None = None
    launched_with: dict[str, Any] | None = None
    """What the run was last launched with: the job's dataset and parameters, and the rate at which it is billed."""
    spent_cost: float = 0
    """The cost of the job's earlier runs in USD."""
    spent_seconds: float = 0
    """The GPU seconds of the job's earlier runs."""
    awaits_upload: bool = False
    """Whether an earlier run has trained the adapter, and only its proof or upload is missing."""
    dataset_patience_seconds: float | None = None
    """How much longer the job may wait for the validation of its dataset; None if it need not wait."""
    stage: str | None = None
    current_step: int = 0


class Assignment(BaseModel):
    """A run that this worker has claimed or adopted. The job is None if its user has deleted it meanwhile."""

    model_config = _ROW

    run: Run
    job: Job | None
    dataset: Dataset | None = None
    unreadable: str | None = None
    """Why the rows of job or dataset can't be parsed, for the user. Most fields of the job are then unset."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write for a run, and what its holder has read of the run's reports."""

    run_id: UUID
    token: UUID
    progress_number: int = 0
    """The number of the trainer's report that was read last; 0 before the first."""
    has_result: bool = False
    """Whether the result that the trainer has reported was read."""


class News(BaseModel):
    """What the database reports about a held run when its lease is renewed."""

    model_config = _ROW

    run_id: UUID
    held: bool
    status: str | None = None
    settled_as: str | None = None
    """The job's status, if this same lease has already settled the run."""
    cancel_requested: bool = False
    external_job_id: str | None = None
    endpoint: str | None = None
    checked_in_at: datetime | None = None
    last_seen_at: datetime | None = None
    used_seconds: float | None = None
    """Seconds from the trainer's check-in to its last heartbeat."""
    posted_seconds_ago: float | None = None
    """Seconds since the run was first sent to a launcher."""
    withdrawn_at: datetime | None = None
    """When the run was taken from an endpoint without a GPU."""
    upload_request: Any = None
    """The trainer's upload request as the container sent it; it is checked when it is answered."""
    progress: Any = None
    """The progress that came with the trainer's heartbeat, as the container sent it, where it is new to the worker."""
    progress_number: int | None = None
    """Counts the trainer's reports of progress; None where none is new."""
    result: Any = None
    """The result that the trainer has reported by the run's own channel, as the container sent it; sent once."""


def parse_assignment(row: dict[str, Any]) -> Assignment:
    """Parse an assignment.

    Users can write anything into the rows of their jobs and datasets. If these can't be parsed, `unreadable` says why,
    and the assignment still has its run, so that the run can be stopped, billed and settled.

    Raises:
        ValidationError: the run itself can't be parsed.
    """
    problem = row.get("unreadable")
    try:
        return Assignment.model_validate({**row, "unreadable": _explain_unreadable(problem) if problem else None})
    except ValidationError as error:
        run = Run.model_validate(row["run"])
        job = row["job"] or {}
        rest = Job.model_construct(
            id=run.job_id,
            user_id=run.user_id,
            status=job.get("status"),
            hyperparameters=job.get("hyperparameters"),
            gpu_config=job.get("gpu_config"),
        )
        places = f"{', '.join(places_of(error))} holds what it can't hold"
        return Assignment(run=run, job=rest, unreadable=_explain_unreadable(problem or places))


def places_of(error: ValidationError) -> list[str]:
    """Return the paths at which a row or message can't be parsed. Values are left out: they may be private."""
    return sorted({".".join(map(str, problem["loc"])) for problem in error.errors()})


def _explain_unreadable(problem: str) -> str:
    return f"The job can't be read: {problem}. Change it and start the job again."


def parse_news(row: dict[str, Any]) -> News:
    """Parse the news about one run.

    Raises:
        ValidationError: the row can't be parsed.
    """
    return News.model_validate(row)


def _explain(column: str, error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=True)[0]
    key = ".".join(map(str, problem["loc"])) or column
    value = problem.get("input")
    shown = repr(value) if isinstance(value, int | float | bool | type(None)) else f"a {type(value).__name__}"
    text = fault_words(problem["type"], problem["msg"])
    return f"{column}: {key} is {shown}, but {text}. Change it and start the job again."


def _refuse_misspelt(column: str, value: dict[str, Any]) -> None:
    wrong = misspelt_key(column, value)
    if wrong:
        raise PreflightError(f"{column}_invalid", wrong)


def parse_hyperparameters(job: Job, *, default_base_model: str) -> Hyperparameters:
    """Check and parse the job's hyperparameters; a job that names no base model gets the default.

    Raises:
        PreflightError: a value is missing, misspelt or out of range; the text names the key, its value and the range.
    """
    if not isinstance(job.hyperparameters, dict):
        raise PreflightError(
            "hyperparameters_invalid", "The job's hyperparameters are not an object; start the job again."
        )
    _refuse_misspelt("hyperparameters", job.hyperparameters)
    try:
        parsed = Hyperparameters.model_validate(
            {key: value for key, value in job.hyperparameters.items() if value is not None}
        )
    except ValidationError as error:
        raise PreflightError("hyperparameters_invalid", _explain("hyperparameters", error)) from None
    return parsed if parsed.base_model else parsed.model_copy(update={"base_model": default_base_model})


def parse_gpu_config(job: Job) -> GpuConfig:
    """Check and parse the job's GPU configuration.

    Raises:
        PreflightError: a value is missing, misspelt or out of range; the text names the key, its value and the range.
    """
    if not isinstance(job.gpu_config, dict):
        raise PreflightError("gpu_config_invalid", "The job's gpu_config is not an object; start the job again.")
    _refuse_misspelt("gpu_config", job.gpu_config)
    try:
        return GpuConfig.model_validate({key: value for key, value in job.gpu_config.items() if value is not None})
    except ValidationError as error:
        raise PreflightError("gpu_config_invalid", _explain("gpu_config", error)) from None
