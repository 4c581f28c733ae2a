"""The answers of the functions that operators ask about jobs, and with which they act on them.

A newer schema may add keys, which the commands' JSON shows. Times are ISO 8601 texts.
"""

from __future__ import annotations

from typing import Any, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

_open = with_config(ConfigDict(extra="allow"))


class JobFilter(TypedDict):
    """Which jobs `list_training_jobs` lists; a key that is missing or null asks for nothing."""

    statuses: NotRequired[list[str] | None]
    user_id: NotRequired[str | None]
    base_model: NotRequired[str | None]
    error_code: NotRequired[str | None]
    since: NotRequired[str | None]
    """Only jobs that were queued at this time or later."""
    until: NotRequired[str | None]
    id_prefix: NotRequired[str | None]
    """Only jobs whose id begins with these hexadecimal digits."""
    cursor: NotRequired[str | None]
    """The `next_cursor` of the page before."""
    limit: NotRequired[int | None]
    """50 where it is missing, 200 at most."""


@_open
class JobEntry(TypedDict):
    """A job of either queue, as operators see it in a list."""

    job_id: str
    queue: str
    """The table that holds the job."""
    user_id: str | None
    name: str | None
    """The job's own name, or that of its dataset where the table has none. Its user wrote it."""
    status: str
    stage: str | None
    progress: float | None
    current_step: int | None
    total_steps: int | None
    base_model: str | None
    created_at: str | None
    started_at: str | None
    completed_at: str | None
    estimated_completion_at: str | None
    current_cost: float | None
    final_cost: float | None
    error_code: str | None
    error_message: str | None
    waits_for: str | None
    """Why a queued job waits; null for any other."""
    retry_count: int
    run_id: str | None
    """Its latest run; null for a job that was never claimed."""
    attempt: int | None


@_open
class JobPage(TypedDict):
    """Answer of `list_training_jobs`: jobs, newest first."""

    jobs: list[JobEntry]
    next_cursor: str | None
    """The `cursor` of the next page; null on the last one."""


@_open
class Job(JobEntry):
    """A job with everything that it was ordered with."""

    dataset_id: str | None
    hyperparameters: Any
    gpu_config: Any
    current_metrics: Any
    """The newest values of the training, such as `training_loss` and `throughput`; null before the first."""
    estimate: dict[str, Any] | None
    """As the command `estimate` shows it; null where no estimate is possible."""
    retried_at: str | None
    """When the job was last started again."""


@_open
class RunStage(TypedDict):
    """A stage of a run: its time in the queue, its launch, the start of its machine, and what its trainer reported."""

    stage: str
    begun_at: str
    seconds: float


@_open
class RunReport(TypedDict):
    """One attempt at a job."""

    run_id: str
    attempt: int
    status: str
    worker: str | None
    endpoint: str | None
    launcher: str | None
    external_job_id: str | None
    created_at: str
    launched_at: str | None
    checked_in_at: str | None
    last_seen_at: str | None
    ended_at: str | None
    next_attempt_at: str | None
    stage: str | None
    current_step: int
    total_steps: int | None
    gpu_type: str | None
    price_per_hour: float | None
    gpu_seconds: float | None
    fault: str | None
    error_code: str | None
    error_message: str | None
    problem: str | None
    """What keeps a live run from going on, for the operator."""
    stages: list[RunStage]


@_open
class CurvePoint(TypedDict):
    """One point of a job's curve. Losses are in nats per token, `throughput` in tokens per second."""

    step: int
    epoch: int | None
    loss: float | None
    validation_loss: float | None
    learning_rate: float | None
    gradient_norm: float | None
    throughput: float | None
    gpu_utilization: float | None
    at: str | None


@_open
class CostRecord(TypedDict):
    """What one run has cost, in USD."""

    run_id: str | None
    cost_type: str
    amount: float | None
    recorded_at: str | None
    gpu_seconds: float | None
    outcome: str | None


@_open
class Artifact(TypedDict):
    """The model of a completed job of the older queue."""

    id: str
    name: str
    version: str | None
    status: str | None
    created_at: str | None
    deleted_at: str | None
    quality_metrics: Any
    training_summary: Any
    artifacts: Any


@_open
class JobDetails(TypedDict):
    """Answer of `training_job_details`: everything about a job."""

    job: Job
    runs: list[RunReport]
    """Its latest hundred runs, the first of them first."""
    points: list[CurvePoint]
    """A thousand at the most, by step."""
    artifact: Artifact | None
    measured: NotRequired[dict[str, Any] | None]
    """What the training has brought, as `read_measured` reads it; null before it is complete."""
    costs: list[CostRecord]


def finished_run(details: JobDetails) -> RunReport | None:
    """Return the run whose adapter the job has; None where it has none."""
    return next((run for run in reversed(details["runs"]) if run["status"] == "succeeded"), None)


class RetryAnswer(TypedDict):
    """Answer of `retry_training_job`."""

    retried: bool
    reason: str | None
    """Why it was not started again, in words."""


class DrainedWorker(TypedDict):
    """A worker that takes nothing new from now on; an element of `drain_training_workers`."""

    name: str
    held: int
    """How many runs it held when it last reported. It ends when these have ended."""
    single_pass: bool
    """A single pass ends by itself, so it is not told anything."""
