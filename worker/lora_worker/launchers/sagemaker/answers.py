"""What SageMaker says of a training job, in the words of a launch. Pure functions.

TrainingJobStatus  SecondaryStatus                         the launch
─────────────────  ──────────────────────────────────────  ──────────────────────────────────────────────
InProgress         Starting, Pending, Interrupted, …       QUEUED: it has no instance, or none any more
InProgress         Downloading, Training, Uploading        RUNNING: an instance is paid for
Stopping           any                                     RUNNING, since it is paid for; QUEUED before it ran
Completed          any                                     COMPLETED, without an output
Failed             any                                     by the beginning of FailureReason (`_of_failed`)
Stopped            MaxRuntimeExceeded                      FAILED: over its time
Stopped            MaxWaitTimeExceeded, MaxPendingTime…    TIMED_OUT, or lost if it had an instance
Stopped            Stopped                                 CANCELLED
any other          any                                     UNKNOWN
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_contract.bounds import Seconds
from lora_worker.launchers.base import EndCause, EndpointHealth, LaunchState, Observation

QUEUED_STATUSES = frozenset(
    {"Starting", "Pending", "LaunchingMLInstances", "PreparingTrainingStack", "Interrupted", "Restarting"}
)
_MOST_REASON_CHARACTERS = 5000
_KILLED_CODES = frozenset({137, 143})
"""128 and the number of SIGKILL or SIGTERM: the container was ended from outside, or the machine's memory ran out."""
_EXIT_CODE = re.compile(r"exit code:?\s*([0-9]{1,3})", re.IGNORECASE)
_CAPACITY_SECONDS = 900
"""So long after a job that found no instance the region counts as one without."""


class Job(BaseModel):
    """What `DescribeTrainingJob` says, as far as it is read."""

    model_config = ConfigDict(extra="ignore")

    TrainingJobStatus: str
    SecondaryStatus: str = ""
    FailureReason: str = ""
    CreationTime: datetime | None = None
    TrainingStartTime: datetime | None = None
    TrainingEndTime: datetime | None = None
    TrainingTimeInSeconds: Seconds = None
    BillableTimeInSeconds: Seconds = None

    @property
    def has_run(self) -> bool:
        """Whether it had an instance."""
        return self.TrainingStartTime is not None or bool(self.TrainingTimeInSeconds)

    @property
    def execution_seconds(self) -> float | None:
        """How long it had an instance, where it has ended."""
        if self.TrainingTimeInSeconds is not None:
            return self.TrainingTimeInSeconds
        return _seconds_between(self.TrainingStartTime, self.TrainingEndTime)


def read_observation(answer: Mapping[str, Any]) -> Observation:
    """An observation from the answer of `DescribeTrainingJob`."""
    try:
        job = Job.model_validate(answer)
    except ValidationError as error:
        where = ".".join(map(str, error.errors(include_url=False, include_input=False)[0]["loc"])) or "answer"
        return Observation(LaunchState.UNKNOWN, reason=f"the answer's {where} can't be read")
    state, cause = _state_of(job)
    if state is LaunchState.UNKNOWN:
        told = f"{job.TrainingJobStatus:.40}/{job.SecondaryStatus:.40}"
        return Observation(state, reason=f"unknown status {told}")
    ended = state not in {LaunchState.QUEUED, LaunchState.RUNNING}
    return Observation(
        state,
        cause=cause,
        execution_seconds=(job.execution_seconds or 0.0) if ended else None,
        billed_seconds=job.BillableTimeInSeconds if ended else None,
        ends_by_itself=True,
        queue_seconds=_seconds_between(job.CreationTime, job.TrainingStartTime),
    )


def _state_of(job: Job) -> tuple[LaunchState, EndCause]:
    match job.TrainingJobStatus:
        case "InProgress" if job.SecondaryStatus in QUEUED_STATUSES:
            return LaunchState.QUEUED, EndCause.UNKNOWN
        case "Stopping" if not job.has_run:
            return LaunchState.QUEUED, EndCause.UNKNOWN
        case "InProgress" | "Stopping":
            return LaunchState.RUNNING, EndCause.UNKNOWN
        case "Completed":
            return LaunchState.COMPLETED, EndCause.UNKNOWN
        case "Failed":
            return _of_failed(job)
        case "Stopped":
            return _of_stopped(job)
    return LaunchState.UNKNOWN, EndCause.UNKNOWN


def _of_stopped(job: Job) -> tuple[LaunchState, EndCause]:
    if job.SecondaryStatus == "MaxRuntimeExceeded":
        return LaunchState.FAILED, EndCause.OVER_TIME
    if job.SecondaryStatus.startswith(("MaxWaitTime", "MaxPendingTime")):
        if job.has_run:
            return LaunchState.FAILED, EndCause.LOST
        return LaunchState.TIMED_OUT, EndCause.UNKNOWN
    return LaunchState.CANCELLED, EndCause.UNKNOWN


def _of_failed(job: Job) -> tuple[LaunchState, EndCause]:
    reason = job.FailureReason[:_MOST_REASON_CHARACTERS]
    kind = reason.partition(":")[0].strip()
    if kind == "CapacityError":
        return (LaunchState.FAILED, EndCause.LOST) if job.has_run else (LaunchState.TIMED_OUT, EndCause.UNKNOWN)
    if kind == "InternalServerError":
        return LaunchState.FAILED, EndCause.LOST
    return LaunchState.FAILED, _cause_of(kind, reason)


def _cause_of(kind: str, reason: str) -> EndCause:
    code = _EXIT_CODE.search(reason)
    if "OutOfMemoryError" in reason or "instance type with more memory" in reason:
        return EndCause.OUT_OF_MEMORY
    if "ModuleNotFoundError" in reason or "ImportError" in reason:
        return EndCause.IMPORT_FAILED
    if code and int(code[1]) in _KILLED_CODES:
        return EndCause.LOST
    if kind == "AlgorithmError":
        return EndCause.RAISED
    if kind == "ClientError" and "image" in reason.lower():
        # It can't be pulled, or its command is not there: no job of any user would run.
        return EndCause.IMPORT_FAILED
    return EndCause.UNKNOWN


def read_health(live: Iterable[Mapping[str, Any]], last_failed: Job | None, now: datetime) -> EndpointHealth:
    """What the project's jobs say of a region; `last_failed` is the one that failed last."""
    statuses = [str(job.get("SecondaryStatus") or "") for job in live]
    queued = sum(status in QUEUED_STATUSES for status in statuses)
    running = len(statuses) - queued
    problem = None
    if last_failed is not None and _of_failed(last_failed)[0] is LaunchState.TIMED_OUT:
        age = _seconds_between(last_failed.TrainingEndTime or last_failed.CreationTime, now)
        if age is not None and age < _CAPACITY_SECONDS:
            problem = "AWS has no instance of this type in the region now: its last job found none"
    return EndpointHealth(True, running, queued, problem, running=running, jobs_running=running)


def read_time(value: Any) -> datetime | None:
    """A time of an answer; None for what is none, or has no zone."""
    return value if isinstance(value, datetime) and value.tzinfo is not None else None


def _seconds_between(start: datetime | None, end: datetime | None) -> float | None:
    if read_time(start) is None or read_time(end) is None:
        return None
    assert start is not None
    assert end is not None
    return max((end - start) / timedelta(seconds=1), 0.0)
