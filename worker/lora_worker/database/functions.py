"""The SQL functions that worker and trainer call, each with the type of its answer and arguments for a test call.

The type is needed to recognise what is no answer of the function, such as a gateway's page or the answer of another
release. The test arguments are for `lora-worker doctor` and `lora-worker migrate`, which call every function to see
whether it can be called. They request nothing, and the test call is a GET, which PostgREST executes in a read-only
transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from uuid import UUID

from pydantic import TypeAdapter

from lora_worker.database.answers import (
    BreakersAnswer,
    EndpointAnswer,
    MayLaunch,
    OwnedFound,
    PlaceRow,
    ReportAnswer,
    ResumedHold,
    ServingErrand,
    Stray,
    WorkerOrders,
)
from lora_worker.database.erasure_rows import Erased, UserObject, UserState
from lora_worker.database.function import Function, T
from lora_worker.database.job_reports import DrainedWorker, JobDetails, JobPage, RetryAnswer
from lora_worker.database.money_rows import BudgetState, Costs, Failures
from lora_worker.database.project_report import ProjectReport
from lora_worker.database.queue_health import QueueHealth
from lora_worker.database.submission_rows import (
    FoundAdapter,
    FoundUser,
    PublishedRun,
    StoredFile,
    Submitted,
    TrialRemoval,
)
from lora_worker.database.version_rows import AliasMove, AliasMoved, AliasRow, EndpointRelease, VersionRow
from lora_worker.database.webhook_rows import WebhookDelivery, WebhookState
from lora_worker.deployment.fleet import FinishedAdapters
from lora_worker.money.speeds import RunSpeed

SCHEMA_VERSION = 3
"""What `worker_schema_version()` answers once every migration of this release is applied."""

Row = dict[str, Any]

_NOBODY = str(UUID(int=0))
_LEASE = {"run_id": _NOBODY, "lease_token": _NOBODY}
_CLAIM = {"dataset_id": _NOBODY, "lease_token": _NOBODY}

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
TRAINING_RUN_SPEED = _function("training_run_speed", TypeAdapter(RunSpeed | None), {"base_model": "", "gpu_type": ""})
CLAIM_TRAINING_JOBS = _function(
    "claim_training_jobs_2",
    TypeAdapter(list[Row]),
    {"worker": "doctor", "max_jobs": "0", "lease_seconds": "60", "max_per_user": "0"},
)
ADOPT_TRAINING_RUNS = _function(
    "adopt_training_runs_3",
    TypeAdapter(list[Row]),
    {"worker": "doctor", "max_runs": "0", "lease_seconds": "60", "launchers": "{doctor}"},
)
RENEW_TRAINING_RUNS = _function(
    "renew_training_runs_2", TypeAdapter(list[Row]), {"leases": "[]", "lease_seconds": "60"}
)
RELEASE_TRAINING_RUNS = _function("release_training_runs", TypeAdapter(int), {"worker": ""})
BEGIN_HANDLING = _function("begin_handling", TypeAdapter(int | None), _LEASE)
BEGIN_LAUNCH = _function(
    "begin_launch_2",
    TypeAdapter(MayLaunch),
    {**_LEASE, "launcher": "", "token_sha256": "", "endpoint": "", "launched_with": "{}", "slots": "1"},
)
PASS_BREAKERS = _function(
    "pass_breakers",
    TypeAdapter(BreakersAnswer),
    {**_LEASE, "base_model": "", "endpoint": "", "look_again_seconds": "300"},
)
NOTE_ENDPOINT = _function(
    "note_endpoint_2",
    TypeAdapter(EndpointAnswer),
    {"launcher": "doctor", "endpoint": "", "state": "unknown", "problem": "", "without_gpu": "false"},
)
TRAINING_PLACES = _function(
    "training_places", TypeAdapter(list[PlaceRow]), {"endpoints": "[]", "base_model": "", "run_id": _NOBODY}
)
TRAINING_PLACES_OF_RUNS = _function(
    "training_places_of_runs", TypeAdapter(dict[UUID, list[PlaceRow]]), {"endpoints": "[]", "runs": "[]"}
)
PUT_BACK_RUN = _function(
    "put_back_run",
    TypeAdapter(Literal["put_back", "launched", "lease_lost"]),
    {**_LEASE, "reason": "", "seconds": "60"},
)
WITHDRAW_LAUNCH = _function("withdraw_launch", TypeAdapter(bool), {**_LEASE, "pass_over_seconds": "60"})
RESUME_TRAINING = _function("resume_training", TypeAdapter(list[ResumedHold]), {"named": "none of this name"})
RECORD_LAUNCH = _function(
    "record_launch", TypeAdapter(bool), {**_LEASE, "launcher": "", "external_job_id": "doctor", "endpoint": ""}
)
GRANT_UPLOAD = _function("grant_upload", TypeAdapter(bool), {**_LEASE, "upload_request": "[]", "sealed_urls": ""})
RECORD_PROGRESS = _function("record_progress", TypeAdapter(list[ReportAnswer]), {"reports": "[]"})
SETTLE_RUN = _function(
    "settle_run_2",
    TypeAdapter(Literal["completed", "failed", "cancelled", "queued"] | None),
    {**_LEASE, "outcome": "{}"},
)
CLAIM_DATASET = _function("claim_dataset", TypeAdapter(Row | None), {"worker": "doctor", "lease_seconds": "0"})
RENEW_DATASET_CLAIM = _function("renew_dataset_claim", TypeAdapter(bool), {**_CLAIM, "lease_seconds": "60"})
PUT_OFF_DATASET = _function("put_off_dataset", TypeAdapter(bool), {**_CLAIM, "seconds": "0"})
SETTLE_DATASET = _function("settle_dataset", TypeAdapter(bool), {**_CLAIM, "outcome": "{}"})
STRAY_LAUNCHES = _function("stray_launches", TypeAdapter(list[Stray]), {"max_launches": "0"})
NOTE_OWNED_LAUNCHES = _function(
    "note_owned_launches", TypeAdapter(list[OwnedFound]), {"launcher": "doctor", "endpoint": "", "launches": "[]"}
)
CLOSE_LAUNCHES = _function("close_launches", TypeAdapter(int), {"reports": "[]"})
ABANDONED_UPLOADS = _function("abandoned_uploads", TypeAdapter(list[str]), {"bucket": "", "max_objects": "0"})
REPORT_WORKER = _function("report_worker_2", TypeAdapter(WorkerOrders), {"worker": "doctor", "report": "{}"})
CLAIM_SERVING_ERRAND = _function(
    "claim_serving_errand",
    TypeAdapter(ServingErrand | None),
    {"worker": "doctor", "launcher": "doctor", "endpoint": "", "lease_seconds": "0", "max_runs": "0"},
)
RECORD_SERVING_ERRAND = _function(
    "record_serving_errand",
    TypeAdapter(bool),
    {"errand_id": _NOBODY, "lease_token": _NOBODY, "endpoint": "", "external_job_id": "doctor"},
)
END_SERVING_ERRAND = _function(
    "end_serving_errand", TypeAdapter(int | None), {"errand_id": _NOBODY, "lease_token": _NOBODY, "outcome": "{}"}
)
CLAIM_OPERATOR_NOTICE = _function("claim_operator_notice", TypeAdapter(bool), {"notice_key": "", "again_seconds": "0"})
CLAIM_WEBHOOK_DELIVERIES = _function(
    "claim_webhook_deliveries",
    TypeAdapter(list[WebhookDelivery]),
    {"endpoints": "[]", "max_deliveries": "0", "lease_seconds": "60"},
)
NOTE_WEBHOOK_DELIVERY = _function(
    "note_webhook_delivery",
    TypeAdapter(bool),
    {"event": "", "endpoint": "", "lease_token": _NOBODY, "outcome": "{}"},
)

# What operators ask for.
REPLAY_WEBHOOK_EVENTS = _function("replay_webhook_events", TypeAdapter(int), {"filter": '{"event": ""}'})
ENABLE_WEBHOOK_ENDPOINT = _function("enable_webhook_endpoint", TypeAdapter(bool), {"name": ""})
TRAINING_WEBHOOK_STATE = _function("training_webhook_state", TypeAdapter(list[WebhookState]))
QUEUE_HEALTH = _function("queue_health", TypeAdapter(QueueHealth))
PROJECT_REPORT = _function("training_project_report", TypeAdapter(ProjectReport))
FIND_TRAINING_USER = _function("find_training_user", TypeAdapter(FoundUser | None), {"named": _NOBODY})
SUBMIT_TRAINING_JOB = _function("submit_training_job", TypeAdapter(Submitted | None), {"entry": "{}"})
TRAINING_PUBLISHED_RUN = _function("training_published_run", TypeAdapter(PublishedRun | None), {"job_id": _NOBODY})
TRAINING_INIT_ADAPTER = _function(
    "training_init_adapter", TypeAdapter(FoundAdapter | None), {"user_id": _NOBODY, "named": _NOBODY}
)
TRAINING_USER_STATE = _function("training_user_state", TypeAdapter(UserState), {"user_id": _NOBODY})
STOP_USER_TRAINING = _function("stop_user_training", TypeAdapter(int), {"user_id": _NOBODY})
TRAINING_USER_OBJECTS = _function(
    "training_user_objects",
    TypeAdapter(list[UserObject]),
    {"user_id": _NOBODY, "artifacts_bucket": "", "max_objects": "0"},
)
ERASE_TRAINING_USER = _function("erase_training_user", TypeAdapter(Erased), {"user_id": _NOBODY})
TRAINING_ENDED_TRIALS = _function("training_ended_trials", TypeAdapter(list[UUID]))
TRAINING_TRIAL_FILES = _function("training_trial_files", TypeAdapter(list[StoredFile]), {"job_id": _NOBODY})
REMOVE_TRAINING_TRIAL = _function("remove_training_trial", TypeAdapter(TrialRemoval), {"job_id": _NOBODY})
TRAINING_COSTS = _function(
    "training_costs",
    TypeAdapter(list[Costs]),
    {"since": "2026-01-01T00:00:00Z", "until": "2026-01-01T00:00:00Z", "by": "day"},
)
TRAINING_FAILURES = _function("training_failures", TypeAdapter(list[Failures]), {"since": "infinity"})
TRAINING_BUDGET_STATE = _function("training_budget_state", TypeAdapter(BudgetState))
SET_TRAINING_BUDGET = _function("set_training_budget", TypeAdapter(bool), {"user_id": _NOBODY, "usd_per_day": "-1"})
REMOVE_TRAINING_BUDGET = _function("remove_training_budget", TypeAdapter(bool), {"user_id": _NOBODY})
TRAINING_FINISHED_ADAPTERS = _function("training_finished_adapters", TypeAdapter(list[FinishedAdapters]))
LIST_TRAINING_JOBS = _function("list_training_jobs", TypeAdapter(JobPage), {"filter": '{"limit": 1}'})
TRAINING_JOB_DETAILS = _function("training_job_details", TypeAdapter(JobDetails | None), {"job_id": _NOBODY})
CANCEL_TRAINING_JOB = _function("cancel_training_job", TypeAdapter(bool), {"job_id": _NOBODY})
RETRY_TRAINING_JOB = _function("retry_training_job", TypeAdapter(RetryAnswer), {"job_id": _NOBODY})
HOLD_TRAINING = _function("hold_training", TypeAdapter(bool), {"user_id": _NOBODY, "reason": ""})
RELEASE_TRAINING = _function("release_training", TypeAdapter(bool), {"user_id": _NOBODY})
DRAIN_TRAINING_WORKERS = _function(
    "drain_training_workers", TypeAdapter(list[DrainedWorker]), {"name": "none of this name"}
)
TRAINING_VERSIONS = _function("training_versions", TypeAdapter(list[VersionRow]), {"filter": '{"limit": 1}'})
LIST_TRAINING_ALIASES = _function(
    "list_training_aliases", TypeAdapter(list[AliasRow]), {"name": "none-of-this-name", "user_id": _NOBODY}
)
TRAINING_ALIAS_HISTORY = _function(
    "training_alias_history", TypeAdapter(list[AliasMove]), {"name": "none-of-this-name"}
)
MOVE_TRAINING_ALIAS = _function(
    "move_training_alias", TypeAdapter(AliasMoved), {"change": '{"name": "none-of-this-name"}'}
)
CLAIM_ENDPOINT_RELEASE = _function(
    "claim_endpoint_release",
    TypeAdapter(EndpointRelease | None),
    {"worker": "doctor", "lease_seconds": "0", "again_seconds": "0"},
)
NOTE_ENDPOINT_RELEASE = _function("note_endpoint_release", TypeAdapter(bool), {"worker": "", "note": "{}"})

TRAINER_FUNCTIONS = (
    Function("check_in_run", TypeAdapter(Row), {"token": "", "external_job_id": "doctor", "execution_id": _NOBODY}),
    Function(
        "heartbeat_run",
        TypeAdapter(Row),
        {"token": "", "external_job_id": "doctor", "execution_id": _NOBODY, "progress": "{}"},
    ),
    Function(
        "finish_run",
        TypeAdapter(Row),
        {"token": "", "external_job_id": "doctor", "execution_id": _NOBODY, "result": "{}"},
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
