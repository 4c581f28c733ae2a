"""What worker and trainer say to each other, and the only place that spells the keys.

`Request` goes out as the `input` of RunPod's `/run`; `Progress` and `Result` come back as its output;
`Manifest` lies beside the adapter and is enough to settle a run when everything else is forgotten.
This module imports pydantic and nothing heavier: the worker uses it, and the worker fits 256 MB.
"""

from __future__ import annotations

from contextlib import suppress
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    computed_field,
    model_validator,
)

from lora_contract.bounds import (
    Count,
    EpochReached,
    Epochs,
    FiniteFloat,
    GpuCount,
    Instant,
    Label,
    Metrics,
    Name,
    Notes,
    PointEpoch,
    PointStep,
    Seconds,
    Sentence,
    Size,
    StepReached,
    spread,
)  # fmt: skip
from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_contract.object_names import is_storable
from lora_contract.words import joined

PROTOCOL_VERSION: Literal[1] = 1
LOG_NAME = "training_log.jsonl"
MANIFEST_NAME = "manifest.json"
CHART_POINTS = 100
"""The application's metrics route returns the first 100 rows, so a job never keeps more."""

MAX_MANIFEST_BYTES = 2_000_000
"""The largest manifest: the trainer writes none above it, and the worker reads none."""
MAX_MESSAGE_BYTES = 1_000_000
"""The largest progress or result that the trainer sends through RunPod, which refuses larger ones unsaid."""
MAX_FILES = 200
MAX_UPLOAD_REQUEST_BYTES = 100_000
"""The most files of an artifact, and the most that their list may take as the database's `request_upload` counts."""
MAX_POINTS = 5000
"""The most points of a curve that are read of a message; of more, so many are taken, evenly spread."""


class Stage(StrEnum):
    """The trainer's stages, in the order in which they may follow each other."""

    SETUP = "setup"
    DOWNLOADING = "downloading"
    PREPARING = "preparing"
    LOADING_MODEL = "loading_model"
    CONFIGURING = "configuring"
    TRAINING = "training"
    SAVING = "saving"
    UPLOADING = "uploading"
    COMPLETED = "completed"


STAGES: tuple[Stage, ...] = tuple(Stage)

STAGE_PROGRESS: dict[Stage, float] = {
    Stage.SETUP: 1,
    Stage.DOWNLOADING: 5,
    Stage.PREPARING: 10,
    Stage.LOADING_MODEL: 15,
    Stage.CONFIGURING: 20,
    Stage.TRAINING: 25,
    Stage.SAVING: 95,
    Stage.UPLOADING: 97,
    Stage.COMPLETED: 100,
}
"""Percent at which a stage begins; training fills the span from 25 to 95."""


class Fault(StrEnum):
    """Whose fault a failure is, which decides whether and how often it is tried again."""

    PERMANENT = "permanent"
    """The job's own: trying the same again gives the same."""
    TRANSIENT = "transient"
    """Passing: tried again with backoff, counted against the job's attempts."""
    INFRASTRUCTURE = "infrastructure"
    """The GPU cloud's (preemption, a lost machine): tried again, with a limit of its own."""


class ErrorCode(StrEnum):
    """Why a trainer ended without a result. `FAULTS` says what follows from each."""

    REQUEST_INVALID = "request_invalid"
    HYPERPARAMETERS_INVALID = "hyperparameters_invalid"
    DATASET_UNREACHABLE = "dataset_unreachable"
    DATASET_CHANGED = "dataset_changed"
    DATASET_INVALID = "dataset_invalid"
    BASE_MODEL_UNKNOWN = "base_model_unknown"
    BASE_MODEL_UNREACHABLE = "base_model_unreachable"
    BASE_MODEL_MISMATCH = "base_model_mismatch"
    DOES_NOT_FIT = "does_not_fit"
    DISK_FULL = "disk_full"
    OUT_OF_MEMORY = "out_of_memory"
    LOSS_NOT_FINITE = "loss_not_finite"
    NOTHING_LEARNED = "nothing_learned"
    TIME_LIMIT = "time_limit"
    CHANNEL_UNREACHABLE = "channel_unreachable"
    UPLOAD_FAILED = "upload_failed"
    STORAGE_REFUSED = "storage_refused"
    ARTIFACT_TOO_LARGE = "artifact_too_large"
    GRANT_MISSING = "grant_missing"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    CHILD_CRASHED = "child_crashed"
    INTERNAL = "internal"


FAULTS: dict[ErrorCode, Fault] = {
    ErrorCode.REQUEST_INVALID: Fault.PERMANENT,
    ErrorCode.HYPERPARAMETERS_INVALID: Fault.PERMANENT,
    ErrorCode.DATASET_UNREACHABLE: Fault.TRANSIENT,
    # The file was rewritten between preflight and download; the next preflight reads the new one.
    ErrorCode.DATASET_CHANGED: Fault.TRANSIENT,
    ErrorCode.DATASET_INVALID: Fault.PERMANENT,
    ErrorCode.BASE_MODEL_UNKNOWN: Fault.PERMANENT,
    ErrorCode.BASE_MODEL_UNREACHABLE: Fault.TRANSIENT,
    ErrorCode.BASE_MODEL_MISMATCH: Fault.PERMANENT,
    ErrorCode.DOES_NOT_FIT: Fault.PERMANENT,
    ErrorCode.DISK_FULL: Fault.TRANSIENT,
    ErrorCode.OUT_OF_MEMORY: Fault.PERMANENT,
    ErrorCode.LOSS_NOT_FINITE: Fault.PERMANENT,
    ErrorCode.NOTHING_LEARNED: Fault.PERMANENT,
    ErrorCode.TIME_LIMIT: Fault.PERMANENT,
    ErrorCode.CHANNEL_UNREACHABLE: Fault.TRANSIENT,
    ErrorCode.UPLOAD_FAILED: Fault.TRANSIENT,
    # The operator's to mend: the adapter waits on the volume, and no launch is paid for while the storage refuses it.
    ErrorCode.STORAGE_REFUSED: Fault.INFRASTRUCTURE,
    # Trying again writes the same files; whoever changed the trainer has to know.
    ErrorCode.ARTIFACT_TOO_LARGE: Fault.PERMANENT,
    # The daemon was away: nobody's fault, and the next attempt publishes without training again.
    ErrorCode.GRANT_MISSING: Fault.INFRASTRUCTURE,
    ErrorCode.SUPERSEDED: Fault.INFRASTRUCTURE,
    ErrorCode.CANCELLED: Fault.PERMANENT,
    ErrorCode.INTERRUPTED: Fault.INFRASTRUCTURE,
    ErrorCode.CHILD_CRASHED: Fault.TRANSIENT,
    ErrorCode.INTERNAL: Fault.TRANSIENT,
}


def _check_path(path: str) -> str:
    parts = path.split("/")
    if path.startswith("/") or "\\" in path or any(part in {"", ".", ".."} for part in parts):
        raise ValueError(f"{path!r} is not a plain relative path")
    if not is_storable(path):
        raise ValueError(f"{path!r} is a name that the storage refuses")
    return path


RelativePath = Annotated[str, AfterValidator(_check_path), Field(max_length=400)]


class _Message(BaseModel):
    # A newer peer may add keys; refusing them would make every rollout a flag day.
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class DatasetRef(_Message):
    """Where the dataset lies and what it must be. `url` is signed: never log it."""

    url: str = Field(repr=False)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    bytes: int | None = Field(default=None, ge=0)
    format: str | None = None


class Channel(_Message):
    """How the trainer reaches the database: the project's URL, its publishable key, the run's token."""

    url: str
    key: str = Field(repr=False)
    token: str = Field(repr=False, min_length=43)


class OutputRef(_Message):
    """Where the artifact goes: `<bucket>/<prefix><name>`; `prefix` is `<user_id>/<run_id>/`."""

    bucket: str
    prefix: str = Field(pattern=r"/$")
    archive_name: RelativePath | None = None
    """When set, a `.tar.gz` with one leading folder is published too, under this name."""


class Limits(_Message):
    """What the run may use. The trainer saves a checkpoint and ends before `max_seconds` is over."""

    max_seconds: float = Field(gt=0)
    grant_wait_seconds: float = Field(default=1800, gt=0)
    chart_points: int = Field(default=CHART_POINTS, ge=2, le=1000)


class Request(_Message):
    """The `input` of `/run`: one run, complete."""

    protocol: Literal[1] = PROTOCOL_VERSION
    job_id: str
    run_id: str
    attempt: int = Field(default=1, ge=1)
    dataset: DatasetRef
    hyperparameters: Hyperparameters
    gpu_config: GpuConfig
    channel: Channel
    output: OutputRef
    limits: Limits
    callback_url: str | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def dataset_url(self) -> str:
        """The dataset's URL once more, under the key that the earlier trainer requires."""
        return self.dataset.url


class Point(_Message):
    """One logged point of the curve. Units: tokens/s, percent, bytes; losses in nats per token."""

    step: PointStep
    epoch: PointEpoch
    training_loss: FiniteFloat = None
    validation_loss: FiniteFloat = None
    learning_rate: FiniteFloat = None
    gradient_norm: FiniteFloat = None
    throughput: FiniteFloat = None
    gpu_utilization: FiniteFloat = None
    gpu_memory_bytes: Size = None
    timestamp: Instant = None
    """Unix seconds at which the step ended."""


def _readable_points(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    points = []
    for entry in spread(value, MAX_POINTS):
        # One that can't be is left out, and takes no other with it.
        with suppress(ValidationError):
            points.append(Point.model_validate(entry))
    return points


Points = Annotated[list[Point], BeforeValidator(_readable_points)]


class Progress(_Message):
    """RunPod's progress output. Cumulative: `points` holds every kept point of the run so far."""

    run_id: Name
    execution_id: Name | None = None
    stage: Stage
    progress: float = Field(ge=0, le=100)
    current_epoch: EpochReached = 0
    current_step: StepReached = 0
    total_steps: Count = None
    eta_seconds: Seconds = None
    metrics: Metrics = Field(default_factory=dict)
    points: Points = Field(default_factory=list)
    message: Sentence | None = None
    gpu_type: Label | None = None
    gpu_count: GpuCount = None


class ArtifactFile(_Message):
    """One file of the artifact: `path` is relative to the run's prefix, `name` what users see."""

    name: Name
    path: RelativePath
    bytes: int = Field(ge=0, lt=10**15)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class FinalMetrics(_Message):
    """What the training ended with."""

    first_training_loss: FiniteFloat = None
    final_training_loss: FiniteFloat = None
    final_validation_loss: FiniteFloat = None
    best_validation_loss: FiniteFloat = None
    tokens_per_second: FiniteFloat = None


class Summary(_Message):
    """What was done, for the artifact's row and for the bill."""

    base_model: Label | None = None
    base_revision: Label | None = None
    dataset_sha256: Label | None = None
    training_examples: Count = None
    validation_examples: Count = None
    skipped_lines: Count = None
    epochs_completed: Epochs = None
    total_steps: Count = None
    train_seconds: Seconds = None
    execution_seconds: Seconds = None
    """Seconds from the trainer's check-in to this result, all executions of the run that are known."""
    gpu_type: Label | None = None
    gpu_count: GpuCount = None
    trainable_parameters: Size = None
    resumed_from_step: Count = None
    notes: Notes = Field(default_factory=list)
    """Sentences for the user: what was shrunk, skipped or truncated."""


class Manifest(_Message):
    """Written last: its presence says that the artifact is whole. Lists every file but itself."""

    protocol: Literal[1] = PROTOCOL_VERSION
    job_id: Name
    run_id: Name
    files: list[ArtifactFile] = Field(max_length=MAX_FILES)
    metrics: FinalMetrics = Field(default_factory=FinalMetrics)
    summary: Summary = Field(default_factory=Summary)
    points: Points = Field(default_factory=list)


class TrainerError(_Message):
    """A failure in the user's words: what went wrong, and what to do about it."""

    code: ErrorCode
    message: Sentence
    hint: Sentence | None = None
    too_many_bytes: Size = None
    """The size of a file that the storage found too large."""

    def sentence(self) -> str:
        """Message and hint as one text for `error_message`."""
        return joined(self.message, self.hint)


class Result(_Message):
    """The handler's answer. `superseded` trained nothing; `unpublished` left the adapter on the volume."""

    run_id: Name
    status: Literal["completed", "failed", "superseded", "unpublished"]
    error: TrainerError | None = None
    stage: Stage | None = None
    """How far the trainer came."""
    manifest: Manifest | None = None
    metrics: FinalMetrics = Field(default_factory=FinalMetrics)
    summary: Summary = Field(default_factory=Summary)
    points: Points = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _take_failure(cls, data: Any) -> Any:
        if isinstance(data, dict) and "failure" in data:
            data = {**data, "error": data["failure"]}
        return data

    def as_output(self) -> dict[str, Any]:
        """What the handler returns to RunPod, such that a failed result also fails the RunPod job.

        RunPod's SDK takes the key `error` out of the output, so the error travels as `failure` too, and
        `Result.model_validate` finds it there.
        """
        output = self.model_dump(mode="json", exclude_none=True)
        if self.error is not None and self.status in {"failed", "unpublished"}:
            output["failure"] = output["error"]
            output["error"] = self.error.sentence()
        return output
