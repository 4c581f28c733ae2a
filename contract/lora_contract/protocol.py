"""The messages that worker and trainer exchange. No other module spells their keys.

The worker sends a `Request` as the `input` of RunPod's `/run`; `Progress` and `Result` come back as its output. The
trainer uploads a `Manifest` beside the adapter. It holds all that the worker needs to settle the run, so that a run can
be settled even if its `Result` was lost. This module imports nothing heavier than pydantic, because the worker must
run in 256 MB of memory.
"""

from __future__ import annotations

from contextlib import suppress
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    computed_field,
    model_validator,
)

from lora_contract.application import Application
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
    NoneIfInvalid,
    Notes,
    PointEpoch,
    PointStep,
    Seconds,
    Sentence,
    Size,
    StepReached,
    spread,
)  # fmt: skip
from lora_contract.error_codes import ErrorCode
from lora_contract.evaluation import Evaluation
from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_contract.log_lines import LogLines
from lora_contract.object_names import RelativePath
from lora_contract.serving import ServedName, Serving
from lora_contract.tracing import Traceparent
from lora_contract.words import joined

PROTOCOL_VERSION: Literal[1] = 1
LOG_NAME = "training_log.jsonl"
CONTAINER_LOG_NAME = "log.txt"
"""The name under which the worker keeps the container's log in a run's folder. No artifact may have such a file."""
MANIFEST_NAME = "manifest.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""The files of an artifact that hold the adapter itself, as PEFT names them."""
CHART_POINTS = 100
"""The most points of a curve that the database keeps of a job: the application's metrics route returns 100 rows."""

MAX_MANIFEST_BYTES = 2_000_000
"""The largest manifest that the trainer writes and the worker reads."""
MAX_MESSAGE_BYTES = 1_000_000
"""The largest progress or result that the trainer sends through RunPod. RunPod drops larger ones without an error."""
MAX_HEARTBEAT_PROGRESS_BYTES = 40_000
"""The largest progress that is stored with a heartbeat, as the database writes JSON. The SQL function `heartbeat_run`
stores none above it. The chart of a run has 100 points by default, which take about 25,000 bytes."""
MAX_REPORTED_RESULT_BYTES = 200_000
"""The largest result that is stored where no launcher carries it, as the database writes JSON. The SQL function
`finish_run` stores none above it."""
MAX_FILES = 200
MAX_UPLOAD_REQUEST_BYTES = 100_000
"""The most bytes that the list of an artifact's files may have. The SQL function `request_upload` checks it, too."""
MAX_POINTS = 5000
"""The most points of a curve that are read from a message. A longer list is thinned evenly to this number."""


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
"""The percentage at which each stage begins. Training takes the range from 25 to 95."""


class _Message(BaseModel):
    # Unknown keys are ignored, so that worker and trainer can be updated one after the other: the newer may add keys.
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class DatasetRef(_Message):
    """Where the trainer downloads the dataset, and which content it must have. `url` is signed: never log it."""

    url: str = Field(repr=False)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    bytes: int | None = Field(default=None, ge=0)
    format: str | None = None


class AdapterFile(_Message):
    """One file of an earlier adapter. `url` is signed: never log it."""

    name: RelativePath
    """Where the file belongs in the adapter's folder."""
    url: str = Field(repr=False)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0, lt=10**15)


class AdapterRef(_Message):
    """The earlier adapter with which the training begins. The worker has checked that it is the same user's."""

    id: Name
    """The artifact's id, which is that of the run that made it."""
    base_model: Name
    """The base model that it was trained on; the trainer compares it with the adapter's own configuration."""
    base_revision: Label | None = None
    files: list[AdapterFile] = Field(min_length=1, max_length=len(ADAPTER_FILES))
    """Those of `ADAPTER_FILES`."""


class Channel(_Message):
    """How the trainer calls the database: URL and publishable key of the Supabase project, and the run's token."""

    url: str
    key: str = Field(repr=False)
    token: str = Field(repr=False, min_length=43)


class OutputRef(_Message):
    """Where the artifact's files are uploaded: `<bucket>/<prefix><name>`; `prefix` is `<user_id>/<run_id>/`."""

    bucket: str
    prefix: str = Field(pattern=r"/$")
    archive_name: RelativePath | None = None
    """If set, a `.tar.gz` of the artifact with one leading folder is published as well, under this name."""
    serving_name: ServedName | None = None
    """If set, and a network volume is mounted, the adapter is put into its folder of served adapters under this name,
    or under the longer one of the job where another job's adapter has it (`lora_contract.serving`)."""


class Limits(_Message):
    """What the run may use. The trainer saves a checkpoint and ends before `max_seconds` have passed."""

    max_seconds: float = Field(gt=0)
    grant_wait_seconds: float = Field(default=1800, gt=0)
    chart_points: int = Field(default=CHART_POINTS, ge=2, le=1000)


class Request(_Message):
    """The `input` of RunPod's `/run`: all that the trainer needs for one run."""

    protocol: Literal[1] = PROTOCOL_VERSION
    job_id: str
    run_id: str
    attempt: int = Field(default=1, ge=1)
    dataset: DatasetRef
    hyperparameters: Hyperparameters
    gpu_config: GpuConfig
    init_adapter: AdapterRef | None = None
    """The adapter that `hyperparameters.init_adapter` names, resolved by the worker; None where it names none."""
    channel: Channel
    output: OutputRef
    limits: Limits
    traceparent: Traceparent = None
    """The root span of the run's trace (W3C Trace Context), where the worker records traces."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def dataset_url(self) -> str:
        """Repeat the dataset's URL under the key that the previous version of the trainer requires."""
        return self.dataset.url


class Point(_Message):
    """One point of the training curve.

    Losses are in nats per token (of dpo: in nats per pair; of kto: between 0 and the answers' weight), `throughput` in
    tokens per second, `gpu_utilization` in percent. `reward_margin` and `reward_accuracy` are of such methods only.
    """

    step: PointStep
    epoch: PointEpoch
    training_loss: FiniteFloat = None
    validation_loss: FiniteFloat = None
    learning_rate: FiniteFloat = None
    gradient_norm: FiniteFloat = None
    throughput: FiniteFloat = None
    gpu_utilization: FiniteFloat = None
    gpu_memory_bytes: Size = None
    reward_margin: FiniteFloat = None
    """By how much the mean reward of the better answers is above that of the worse; a reward is `beta` times the log of
    how much more probable an answer is than under the reference."""
    reward_accuracy: FiniteFloat = None
    """The share of the pairs whose better answer has the higher reward, or of the rated answers whose reward has the
    right sign, from 0 to 1."""
    timestamp: Instant = None
    """Unix seconds at which the step ended."""


def _readable_points(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    points = []
    for entry in spread(value, MAX_POINTS):
        # A point that is not valid is left out; the others are still used.
        with suppress(ValidationError):
            points.append(Point.model_validate(entry))
    return points


Points = Annotated[list[Point], BeforeValidator(_readable_points)]


class Progress(_Message):
    """How far a run is.

    Through RunPod each message is complete: `points` holds all points of the chart so far. With a heartbeat it holds
    the newest of them (`MAX_HEARTBEAT_PROGRESS_BYTES`).
    """

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
    proves: bool = False
    """Whether this trainer tries a finished adapter on its base; False from trainers of before this key. So a worker
    stops one that can't prove anything at its first word, and not after the training is paid for."""


class ArtifactFile(_Message):
    """One file of the artifact. `path` is relative to the run's prefix; `name` is what users see."""

    name: Name
    path: RelativePath
    bytes: int = Field(ge=0, lt=10**15)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class FinalMetrics(_Message):
    """Figures of a finished training. Losses are in nats per token; None where nothing was measured."""

    first_training_loss: FiniteFloat = None
    final_training_loss: FiniteFloat = None
    final_validation_loss: FiniteFloat = None
    best_validation_loss: FiniteFloat = None
    final_reward_margin: FiniteFloat = None
    """Of preference methods: how much higher the adapter rates preferred answers than others, in nats times beta; of
    what is held out, or of the last step where nothing is."""
    final_reward_accuracy: FiniteFloat = None
    """Of preference methods: the share of examples, 0 to 1, whose preferred answer is rated higher."""
    tokens_per_second: FiniteFloat = None


class Pace(_Message):
    """How fast the last execution of a run trained: the tokens of its steps, and the time from the first to the last.

    Evaluations and checkpoints between the steps count as time.
    """

    tokens: Size = None
    seconds: Seconds = None
    steps: Count = None


class Summary(_Message):
    """What the trainer did, for the artifact's row in the database and for the bill."""

    base_model: Label | None = None
    base_revision: Label | None = None
    method: Label | None = None
    """How it was trained (`Hyperparameters.method`)."""
    init_adapter: Label | None = None
    """The id of the adapter with which the training began; None where it began with a new one. The worker compares it
    with what the job asked for: trainers from before this key ignore that request."""
    dataset_sha256: Label | None = None
    training_examples: Count = None
    validation_examples: Count = None
    skipped_lines: Count = None
    epochs_completed: Epochs = None
    total_steps: Count = None
    train_seconds: Seconds = None
    execution_seconds: Seconds = None
    """Seconds from check-in to this result, added up over all executions of the run that the trainer knows of."""
    gpu_type: Label | None = None
    gpu_count: GpuCount = None
    """The GPUs of the machine, which are billed."""
    gpus_used: GpuCount = None
    """Those of them that trained, as many as the job asked for; None from trainers that use one."""
    trainable_parameters: Size = None
    quantization: Label | None = None
    """How the base model was held while training: `nf4`, in 4 bits, or `bf16`, not quantised."""
    resumed_from_step: Count = None
    pace: Annotated[Pace | None, NoneIfInvalid] = None
    """Missing from earlier trainers, and where the method's tokens say nothing about the time of others."""
    notes: Notes = Field(default_factory=list)
    """Sentences for the user about what was reduced, skipped or truncated."""


class Manifest(_Message):
    """Lists all other files of an artifact. It is uploaded last, so where it exists the artifact is complete."""

    protocol: Literal[1] = PROTOCOL_VERSION
    job_id: Name
    run_id: Name
    files: list[ArtifactFile] = Field(max_length=MAX_FILES)
    metrics: FinalMetrics = Field(default_factory=FinalMetrics)
    summary: Summary = Field(default_factory=Summary)
    points: Points = Field(default_factory=list)
    evaluation: Annotated[Evaluation | None, NoneIfInvalid] = None
    """What base and adapter found of unseen text; None from trainers of before this key."""
    application: Annotated[Application | None, NoneIfInvalid] = None
    """The proof that the adapter is applied; None from trainers of before this key, whose artifacts are refused."""
    serving: Annotated[Serving | None, NoneIfInvalid] = None
    """Under which name vLLM serves the adapter from the volume; None where it was not put there."""


class TrainerError(_Message):
    """A failure, explained to the user: what went wrong, and what to do about it."""

    code: ErrorCode
    message: Sentence
    hint: Sentence | None = None
    too_many_bytes: Size = None
    """The size in bytes of a file that Storage refused as too large."""

    def sentence(self) -> str:
        """Return message and hint as one text for the column `error_message`."""
        return joined(self.message, self.hint)


class Result(_Message):
    """What the trainer's handler returns at the end of a run.

    `superseded`: another execution has taken over the run, so this one trained nothing. `unpublished`: the training
    is finished, but the adapter could not be uploaded and waits on the volume.
    """

    run_id: Name
    status: Literal["completed", "failed", "superseded", "unpublished"]
    error: TrainerError | None = None
    stage: Stage | None = None
    """The last stage that the trainer reached."""
    manifest: Manifest | None = None
    metrics: FinalMetrics = Field(default_factory=FinalMetrics)
    summary: Summary = Field(default_factory=Summary)
    points: Points = Field(default_factory=list)
    evaluation: Annotated[Evaluation | None, NoneIfInvalid] = None
    application: Annotated[Application | None, NoneIfInvalid] = None
    log: LogLines = Field(default_factory=list)
    """The last lines that handler and training process have logged, for the operator; earlier trainers send none."""

    @model_validator(mode="before")
    @classmethod
    def _take_failure(cls, data: Any) -> Any:
        if isinstance(data, dict) and "failure" in data:
            data = {**data, "error": data["failure"]}
        return data

    def as_output(self) -> dict[str, Any]:
        """Return the handler's output for RunPod; its key `error` makes RunPod mark the job as failed.

        RunPod's SDK removes the key `error` from the output. So the error is sent under the key `failure` as well,
        where `Result.model_validate` looks for it.
        """
        output = self.model_dump(mode="json", exclude_none=True)
        if self.error is not None and self.status in {"failed", "unpublished"}:
            output["failure"] = output["error"]
            output["error"] = self.error.sentence()
        return output
