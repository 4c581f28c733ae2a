"""The SQL functions that worker and trainer call, each with the type of its answer and arguments for a test call.

The type is needed to recognise what is no answer of the function, such as a gateway's page or the answer of another
release. The test arguments are for `lora-worker doctor` and `lora-worker migrate`, which call every function to see
whether it can be called. They request nothing, and the test call is a GET, which PostgREST executes in a read-only
transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, NotRequired, TypeVar
from uuid import UUID

from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from lora_worker.database.money_rows import BudgetState, Costs, Failures
from lora_worker.database.project_report import ProjectReport

T = TypeVar("T")

SCHEMA_VERSION = 3
"""What `worker_schema_version()` answers once every migration of this release is applied."""

Row = dict[str, Any]

_NOBODY = str(UUID(int=0))
_LEASE = {"run_id": _NOBODY, "lease_token": _NOBODY}
_CLAIM = {"dataset_id": _NOBODY, "lease_token": _NOBODY}


@dataclass(frozen=True, slots=True)
class Function(Generic[T]):
    """A function of the schema `public`. `probe` are the arguments of its test call, as they stand in a URL's query."""

    name: str
    answer: TypeAdapter[T]
    probe: Mapping[str, str]


def schema_marker(version: int) -> str:
    """Return the name of the function that a database has for as long as it serves workers of this schema version.

    The function takes a row of `datasets`. So a query for `datasets.<marker>` asks the database itself whether the
    function exists, without PostgREST's cache: PostgREST passes names of columns on without a check, and Postgres reads
    this one as a call of the function for each row.
    """
    return f"worker_schema_{version}"


class MayLaunch(TypedDict):
    """Answer of `begin_launch`: whether the run may be launched, and if not, why.

    If it may, the answer has the job's two columns as they are now, with the keys of both of the application's shapes;
    neither where the columns can't be read.
    """

    may_launch: bool
    reason: str | None
    hyperparameters: NotRequired[Any]
    gpu_config: NotRequired[Any]


class BreakersAnswer(TypedDict):
    """Answer of `pass_breakers`: whether the run may be launched, and if not, why."""

    go: bool
    reason: NotRequired[Literal["lease_lost", "held"]]
    kind: NotRequired[Literal["base_model", "image"]]
    name: NotRequired[str]
    message: NotRequired[str]


class EndpointAnswer(TypedDict):
    """Answer of `note_endpoint`."""

    starting_seconds: float
    """For how long the endpoint's workers have been starting without one of them getting ready."""


class ResumedHold(TypedDict):
    """A base model or an image for which jobs were held, and how many these were; an element of `resume_training`."""

    kind: str
    name: str
    endpoint: str
    jobs: int


class ReportAnswer(TypedDict):
    """Whether the progress report of one run was stored; an element of `record_progress`."""

    run_id: UUID
    applied: bool
    refused: NotRequired[str | None]
    """The SQLSTATE with which the database refused the report's values."""


class Stray(TypedDict):
    """A launch that no live run owns."""

    run_id: str
    launcher: str | None
    endpoint: str | None
    """The endpoint of the launch, if it was recorded."""
    external_job_id: str
    endpoints: list[str]
    """All endpoints at which its run was launched."""
    age_seconds: float | None


# A newer schema may add keys. `lora-worker status --json` shows them.
_open = with_config(ConfigDict(extra="allow"))


@_open
class LiveRun(TypedDict):
    """A live run, as `queue_health` shows it."""

    run_id: str
    attempt: int
    status: str
    stage: str | None
    progress: float | None
    current_step: int | None
    total_steps: int | None
    current_cost: float | None
    worker: str | None
    lease_seconds_left: float
    seen_seconds_ago: float | None
    problem: str | None
    """What prevents the run from going on, for the operator."""


@_open
class LaunchesAt(TypedDict):
    """How many launches may be alive at an endpoint, as `queue_health` shows it."""

    launcher: str
    endpoint: str | None
    launches: int


@_open
class OpenBreaker(TypedDict):
    """A base model or an image for which jobs are held, because it failed for several users (`queue_health`)."""

    kind: str
    name: str
    endpoint: str
    error_code: str | None
    error_message: str | None
    users: int
    probe_in_seconds: float
    jobs: int


@_open
class EndpointProblem(TypedDict):
    """A problem of an endpoint that a worker reported a short time ago, as `queue_health` shows it."""

    endpoint: str
    problem: str
    starting_seconds: float | None


@_open
class Holds(TypedDict):
    """The reasons why jobs are held, and the problems of endpoints."""

    breakers: list[OpenBreaker]
    endpoint_problems: list[EndpointProblem]


@_open
class WaitingJob(TypedDict):
    """A queued job, as `queue_health` shows it."""

    job_id: str
    wait_seconds: float
    retry_count: int | None
    waits_for: str


@_open
class LivingWorker(TypedDict):
    """A worker that reported a short time ago, or the last single pass, as `queue_health` shows it."""

    name: str
    version: str | None
    running_seconds: float
    seen_seconds_ago: float
    slots: int
    held: int
    problem: str | None
    single_pass: bool


@_open
class QueueHealth(TypedDict):
    """Answer of `queue_health`."""

    queued: int
    oldest_wait_seconds: float | None
    live_runs: int
    expired_leases: int
    stray_launches: int
    no_worker: str | None
    """Since when no worker is running, in words; null if one is."""
    had_worker: bool
    """Whether any worker has reported in the last days."""
    workers: list[LivingWorker]
    endpoints: list[LaunchesAt]
    held: Holds
    runs: list[LiveRun]
    waiting: list[WaitingJob]


WORKER_FUNCTIONS: list[Function[Any]] = []
"""All functions that the worker calls with the secret key."""


def _function(name: str, answer: TypeAdapter[T], probe: Mapping[str, str] | None = None) -> Function[T]:
    made = Function(name, answer, probe or {})
    WORKER_FUNCTIONS.append(made)
    return made


WORKER_SCHEMA_VERSION = _function("worker_schema_version", TypeAdapter(int))
PUBLISH_TRAINING_TERMS = _function(
    "publish_training_terms", TypeAdapter(bool), {"document": "null", "worker": "doctor"}
)
ESTIMATE_TRAINING_JOB = _function("estimate_training_job", TypeAdapter(Row | None), {"job_id": _NOBODY})
CLAIM_TRAINING_JOBS = _function(
    "claim_training_jobs",
    TypeAdapter(list[Row]),
    {"worker": "doctor", "max_jobs": "0", "lease_seconds": "60", "max_per_user": "0"},
)
ADOPT_TRAINING_RUNS = _function(
    "adopt_training_runs_2",
    TypeAdapter(list[Row]),
    {"worker": "doctor", "max_runs": "0", "lease_seconds": "60", "launcher": "doctor"},
)
RENEW_TRAINING_RUNS = _function(
    "renew_training_runs_2", TypeAdapter(list[Row]), {"leases": "[]", "lease_seconds": "60"}
)
RELEASE_TRAINING_RUNS = _function("release_training_runs", TypeAdapter(int), {"worker": ""})
BEGIN_HANDLING = _function("begin_handling", TypeAdapter(int | None), _LEASE)
BEGIN_LAUNCH = _function(
    "begin_launch",
    TypeAdapter(MayLaunch),
    {**_LEASE, "launcher": "", "token_sha256": "", "endpoint": "", "launched_with": "{}"},
)
PASS_BREAKERS = _function(
    "pass_breakers",
    TypeAdapter(BreakersAnswer),
    {**_LEASE, "base_model": "", "endpoint": "", "look_again_seconds": "300"},
)
NOTE_ENDPOINT = _function(
    "note_endpoint",
    TypeAdapter(EndpointAnswer),
    {"launcher": "doctor", "endpoint": "", "state": "unknown", "problem": ""},
)
RESUME_TRAINING = _function("resume_training", TypeAdapter(list[ResumedHold]), {"named": "none of this name"})
RECORD_LAUNCH = _function(
    "record_launch", TypeAdapter(bool), {**_LEASE, "launcher": "", "external_job_id": "doctor", "endpoint": ""}
)
GRANT_UPLOAD = _function("grant_upload", TypeAdapter(bool), {**_LEASE, "upload_request": "[]", "sealed_urls": ""})
RECORD_PROGRESS = _function("record_progress", TypeAdapter(list[ReportAnswer]), {"reports": "[]"})
SETTLE_RUN = _function(
    "settle_run",
    TypeAdapter(Literal["completed", "failed", "cancelled", "queued"] | None),
    {**_LEASE, "outcome": "{}"},
)
CLAIM_DATASET = _function("claim_dataset", TypeAdapter(Row | None), {"worker": "doctor", "lease_seconds": "0"})
RENEW_DATASET_CLAIM = _function("renew_dataset_claim", TypeAdapter(bool), {**_CLAIM, "lease_seconds": "60"})
PUT_OFF_DATASET = _function("put_off_dataset", TypeAdapter(bool), {**_CLAIM, "seconds": "0"})
SETTLE_DATASET = _function("settle_dataset", TypeAdapter(bool), {**_CLAIM, "outcome": "{}"})
STRAY_LAUNCHES = _function("stray_launches", TypeAdapter(list[Stray]), {"max_launches": "0"})
CLOSE_LAUNCHES = _function("close_launches", TypeAdapter(int), {"reports": "[]"})
ABANDONED_UPLOADS = _function("abandoned_uploads", TypeAdapter(list[str]), {"bucket": "", "max_objects": "0"})
REPORT_WORKER = _function("report_worker", TypeAdapter(bool), {"worker": "doctor", "report": "{}"})
QUEUE_HEALTH = _function("queue_health", TypeAdapter(QueueHealth))
PROJECT_REPORT = _function("training_project_report", TypeAdapter(ProjectReport))
TRAINING_COSTS = _function(
    "training_costs",
    TypeAdapter(list[Costs]),
    {"since": "2026-01-01T00:00:00Z", "until": "2026-01-01T00:00:00Z", "by": "day"},
)
TRAINING_FAILURES = _function("training_failures", TypeAdapter(list[Failures]), {"since": "infinity"})
TRAINING_BUDGET_STATE = _function("training_budget_state", TypeAdapter(BudgetState))
SET_TRAINING_BUDGET = _function("set_training_budget", TypeAdapter(bool), {"user_id": _NOBODY, "usd_per_day": "-1"})
REMOVE_TRAINING_BUDGET = _function("remove_training_budget", TypeAdapter(bool), {"user_id": _NOBODY})

TRAINER_FUNCTIONS = (
    Function("check_in_run", TypeAdapter(Row), {"token": "", "external_job_id": "doctor", "execution_id": _NOBODY}),
    Function(
        "heartbeat_run",
        TypeAdapter(Row),
        {"token": "", "external_job_id": "doctor", "execution_id": _NOBODY, "progress": "{}"},
    ),
    Function(
        "request_upload", TypeAdapter(Row), {"token": "", "execution_id": _NOBODY, "files": "[]", "renew": "false"}
    ),
    Function("upload_grant", TypeAdapter(Row), {"token": "", "execution_id": _NOBODY}),
)
"""The functions that the trainer calls with the publishable key and its run's token."""

USER_FUNCTIONS = ("cancel_training_job", "estimate_training_cost", "retry_training_job")
"""The functions that signed-in users call for their own rows, and the service for all."""

OPEN_FUNCTIONS = ("training_is_ours", "training_written_columns")
"""The functions that triggers call with the rights of whoever writes a row."""
