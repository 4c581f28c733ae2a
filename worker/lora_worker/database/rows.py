"""Jobs, runs and datasets as the database gives them, parsed and normalised."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_contract.hyperparameters import (
    GpuConfig,
    Hyperparameters,
    gpu_config_with_both_shapes,
    hyperparameters_with_both_shapes,
)
from lora_contract.object_names import object_key
from lora_worker.database.job_keys import misspelt_key
from lora_worker.errors import PreflightError

_ROW = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


_SHARED_BUCKET = "training-files"
"""Every signed-in user may read it; in all others a user's files lie in a folder of the user's id."""


class Dataset(BaseModel):
    """A row of `datasets`, as far as the worker reads it."""

    model_config = _ROW

    id: UUID
    name: str
    user_id: UUID | None = None
    """None where a job of the newer queue names a file that no dataset has."""
    status: str | None = None
    training_ready: bool | None = None
    storage_bucket: str | None = None
    storage_path: str
    format: str | None = None
    file_size: int | None = None
    error_message: str | None = None
    """Why its validation failed."""
    deleted_at: str | None = None
    """As the database writes it, which knows days that Python does not; only whether there is one matters."""

    @property
    def bucket(self) -> str:
        """The row's own bucket; the application's default where it names none."""
        return self.storage_bucket or "lora-datasets"

    def is_readable_by(self, user_id: UUID | None) -> bool:
        """Whether the file is one that the user may read.

        The worker reads with the service's key, and owners may write bucket and path of their own rows: without
        this, a dataset could show its owner anybody's file.
        """
        if self.user_id not in {None, user_id}:
            return False
        # The name by which it is read, too.
        key = object_key(self.storage_path)
        return key is not None and (self.bucket == _SHARED_BUCKET or key.split("/")[0] == str(user_id))


class DatasetClaim(BaseModel):
    """The right to validate a dataset, until the lease runs out."""

    model_config = _ROW

    dataset: Dataset
    lease_token: UUID
    attempts: int
    """How many workers began to read it, this one included."""
    unreadable: str | None = None
    """Which columns of the row are too much to be read, in the database's words."""


class Job(BaseModel):
    """A job in the columns of `training_jobs` that the worker reads, whichever queue holds it.

    The JSON columns stay as the application wrote them.
    """

    model_config = _ROW

    id: UUID
    user_id: UUID
    dataset_id: UUID | None = None
    """None where a job of the newer queue names only a file."""
    preset_id: str | None = None
    hyperparameters: Any = None
    gpu_config: Any = None
    status: str | None = None
    total_epochs: int | None = None
    total_steps: int | None = None


class Run(BaseModel):
    """A row of `training_runs` with what the job's earlier runs say."""

    model_config = _ROW

    id: UUID
    queue: Literal["training_jobs", "pipeline_training_jobs"] = "training_jobs"
    """The table that the job is a row of."""
    job_id: UUID
    user_id: UUID
    attempt: int
    status: str
    lease_token: UUID
    token_sha256: str | None = Field(default=None, repr=False)
    """Of the token that the run was launched with; None before its first launch."""
    launcher: str | None = None
    endpoint: str | None = None
    """Where the launch that `external_job_id` names was made."""
    endpoints: list[str] = Field(default_factory=list)
    """Wherever the run was launched, the latest first."""
    external_job_id: str | None = None
    checked_in_at: datetime | None = None
    last_seen_at: datetime | None = None
    used_seconds: float | None = None
    """From the trainer's check-in to its last heartbeat."""
    launched_at: datetime | None = None
    handlings: int = 0
    transient_failures: int = 0
    infrastructure_failures: int = 0
    launches: int = 0
    posted_seconds_ago: float | None = None
    launched_with: dict[str, Any] | None = None
    """What the run was last launched with: the job's dataset and parameters, and what it is billed at."""
    spent_cost: float = 0
    """USD that the job's earlier runs have cost."""
    spent_seconds: float = 0
    """GPU seconds that the job's earlier runs have used."""
    dataset_patience_seconds: float | None = None
    """How much longer the job may wait for its dataset; None where it need not wait."""
    age_seconds: float = 0
    created_at: datetime
    stage: str | None = None
    current_step: int = 0


class Assignment(BaseModel):
    """What a claim or an adoption hands over. The job is None when its user deleted it meanwhile."""

    model_config = _ROW

    run: Run
    job: Job | None
    dataset: Dataset | None = None
    unreadable: str | None = None
    """Why the job or its dataset can't be read, for its user. The job is then no more than its id and status."""


class News(BaseModel):
    """What the database says of a held run at each renewal."""

    model_config = _ROW

    run_id: UUID
    held: bool
    status: str | None = None
    settled_as: str | None = None
    """The job's status after this very lease has settled the run."""
    cancel_requested: bool = False
    external_job_id: str | None = None
    endpoint: str | None = None
    checked_in_at: datetime | None = None
    last_seen_at: datetime | None = None
    seen_seconds_ago: float | None = None
    """Since the trainer's last heartbeat; None before the first."""
    used_seconds: float | None = None
    """From the trainer's check-in to its last heartbeat."""
    posted_seconds_ago: float | None = None
    """Since the run was first sent to a launcher."""
    upload_request: Any = None
    """As the container sent it: it is read when it is answered."""


def parse_assignment(row: dict[str, Any]) -> Assignment:
    """An assignment from the database's JSON.

    Users write jobs and datasets, by other ways too than the application's pages: what can't be read there is
    told in `unreadable`, and the run is there to be stopped, billed and settled.

    Raises:
        ValidationError: the run can't be read.
    """
    told = row.get("unreadable")
    try:
        return Assignment.model_validate({**row, "unreadable": _name_the_unreadable(told) if told else None})
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
        return Assignment(run=run, job=rest, unreadable=_name_the_unreadable(told or places))


def places_of(error: ValidationError) -> list[str]:
    """Where a row or message can't be read. Its values are left out: they may be somebody's text."""
    return sorted({".".join(map(str, problem["loc"])) for problem in error.errors()})


def _name_the_unreadable(problem: str) -> str:
    return f"The job can't be read: {problem}. Change it and start the job again."


def parse_news(row: dict[str, Any]) -> News:
    """News from the database's JSON."""
    return News.model_validate(row)


def _explain(column: str, error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=True)[0]
    key = ".".join(map(str, problem["loc"])) or column
    value = problem.get("input")
    shown = repr(value) if isinstance(value, int | float | bool | type(None)) else f"a {type(value).__name__}"
    text = problem["msg"]
    return f"{column}: {key} is {shown}, but {text[0].lower()}{text[1:]}. Change it and start the job again."


def _refuse_misspelt(column: str, value: dict[str, Any]) -> None:
    wrong = misspelt_key(column, value)
    if wrong:
        raise PreflightError(f"{column}_invalid", wrong)


def parse_hyperparameters(job: Job, *, default_base_model: str) -> Hyperparameters:
    """The job's hyperparameters in one shape, with a base model.

    Raises:
        PreflightError: names the key, its value and the range.
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
    """The job's GPU configuration in one shape.

    Raises:
        PreflightError: names the key, its value and the range.
    """
    if not isinstance(job.gpu_config, dict):
        raise PreflightError("gpu_config_invalid", "The job's gpu_config is not an object; start the job again.")
    _refuse_misspelt("gpu_config", job.gpu_config)
    try:
        return GpuConfig.model_validate({key: value for key, value in job.gpu_config.items() if value is not None})
    except ValidationError as error:
        raise PreflightError("gpu_config_invalid", _explain("gpu_config", error)) from None


def enrichment_of(
    job: Job,
    hyperparameters: Hyperparameters,
    gpu_config: GpuConfig,
    *,
    memory_gb: int,
    price_per_hour: float,
) -> dict[str, Any]:
    """Keys to add to the job's JSON columns, so that both of the application's shapes are there."""
    return {
        "hyperparameters": hyperparameters_with_both_shapes(job.hyperparameters, hyperparameters),
        "gpu_config": gpu_config_with_both_shapes(
            job.gpu_config, gpu_config, memory_gb=memory_gb, price_per_hour=price_per_hour
        ),
    }
