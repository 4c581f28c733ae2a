"""The answer of `queue_health`: both queues, the workers and the live runs, as operators see them."""

from __future__ import annotations

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

# A newer schema may add keys. `lora-worker status --json` shows them.
_open = with_config(ConfigDict(extra="allow"))


@_open
class LiveRun(TypedDict):
    """A live run, as `queue_health` shows it."""

    run_id: str
    job_id: str
    user_id: str
    attempt: int
    status: str
    stage: str | None
    base_model: str | None
    progress: float | None
    current_step: int | None
    total_steps: int | None
    current_cost: float | None
    estimated_completion_at: str | None
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
class OperatorHold(TypedDict):
    """Jobs that an operator holds: those of a user, or all (`queue_health`)."""

    user_id: str | None
    reason: str | None
    held_seconds: float


@_open
class Holds(TypedDict):
    """The reasons why jobs are held, and the problems of endpoints."""

    operator_holds: list[OperatorHold]
    breakers: list[OpenBreaker]
    endpoint_problems: list[EndpointProblem]


@_open
class WaitingJob(TypedDict):
    """A queued job, as `queue_health` shows it."""

    job_id: str
    user_id: str | None
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
    draining: bool
    """Whether it was told to take nothing new, and to end when its runs have ended."""


@_open
class FailedJob(TypedDict):
    """A job that failed in the last day and was not started again since, as `queue_health` shows it."""

    job_id: str
    run_id: str
    user_id: str
    error_code: str | None
    error_message: str | None
    seconds_ago: float


@_open
class QueueHealth(TypedDict):
    """Answer of `queue_health`."""

    queued: int
    oldest_wait_seconds: float | None
    live_runs: int
    expired_leases: int
    stray_launches: int
    spent_today: float
    """What all trainings have cost since midnight UTC, in USD."""
    failed_today: int
    """How many jobs have failed in the last 24 hours, of which `failed` has the latest twenty."""
    failed: list[FailedJob]
    no_worker: str | None
    """Since when no worker is running, in words; null if one is."""
    had_worker: bool
    """Whether any worker has reported in the last days."""
    workers: list[LivingWorker]
    endpoints: list[LaunchesAt]
    held: Holds
    runs: list[LiveRun]
    waiting: list[WaitingJob]
