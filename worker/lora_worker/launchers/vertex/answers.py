"""What Vertex AI says of a custom job, in the words of `launchers/base.py`.

Sources: `JobState` and `CustomJob` of `google.cloud.aiplatform.v1`; Google's pages "Understand the serverless training
service" (what is restarted, and the texts of errors) and "Use Spot VMs with training" (a job whose machine was taken
away fails as a stockout after six restarts).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from lora_worker.launchers.base import EndCause, EndpointHealth, LaunchState, Observation
from lora_worker.launchers.marks import is_launch_id
from lora_worker.launchers.vertex.jobs import LAUNCH_LABEL, LIVE_STATES, PROJECT_LABEL, TTL_LABEL

_NUMBERED = re.compile(r"projects/[^/?#\s]{1,100}/locations/[a-z0-9-]{1,63}/customJobs/(?P<number>[0-9]{1,30})")
_MOST_SECONDS = 366 * 86_400.0
_CLOCK_SLACK_SECONDS = 1.0
_STOCKOUT_SECONDS = 900.0
"""For so long after a job found no machine its region counts as without one."""

_LONG_WAIT_SECONDS = 300.0
_START_SECONDS = 900.0
"""A machine's start and its pull of the image take no longer: a job that is pending for longer finds no machine."""

WAITING = frozenset({"JOB_STATE_QUEUED", "JOB_STATE_PENDING", "JOB_STATE_PAUSED"})
AT_WORK = frozenset({"JOB_STATE_RUNNING", "JOB_STATE_UPDATING", "JOB_STATE_CANCELLING"})
_COMPLETED = frozenset({"JOB_STATE_SUCCEEDED", "JOB_STATE_PARTIALLY_SUCCEEDED"})
_ENDED = _COMPLETED | {"JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED"}

_OVER_TIME = re.compile(r"deadline|timed? ?out|timeout|maximum running time", re.IGNORECASE)
_NO_MACHINE = re.compile(r"resources are insufficient|stockout|quota|resource pool|not enough resources", re.IGNORECASE)
_IMPORT = re.compile(r"ModuleNotFoundError|ImportError")
_MEMORY = re.compile(r"ran out[ -]of[ -]memory", re.IGNORECASE)
_STATUS = re.compile(r"non-zero status of ([0-9]{1,3})")
_KILLED = frozenset({9, 15, 137, 143})
"""Exit codes of a container that was ended from outside, as the shell counts (128 + signal) and as Google does."""
_DEADLINE_EXCEEDED, _RESOURCE_EXHAUSTED, _INTERNAL, _UNAVAILABLE = 4, 8, 13, 14
"""Codes of `google.rpc.Code`."""


class _Shape(BaseModel):
    model_config = ConfigDict(extra="ignore", alias_generator=to_camel, populate_by_name=True)


class _Scheduling(_Shape):
    timeout: str = Field(default="", max_length=40)
    strategy: str = Field(default="", max_length=60)


class _Machine(_Shape):
    machine_type: str = Field(default="", max_length=100)


class _Pool(_Shape):
    machine_spec: _Machine = _Machine()


class _Spec(_Shape):
    scheduling: _Scheduling = _Scheduling()
    worker_pool_specs: list[_Pool] = Field(default_factory=list, max_length=10)


class _Error(_Shape):
    code: int = 0
    message: str = ""


class Job(_Shape):
    """A custom job, as far as the worker reads it."""

    name: str = Field(max_length=300)
    state: str = Field(default="JOB_STATE_UNSPECIFIED", max_length=60)
    create_time: AwareDatetime | None = None
    start_time: AwareDatetime | None = None
    end_time: AwareDatetime | None = None
    error: _Error | None = None
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)
    job_spec: _Spec = _Spec()

    @property
    def number(self) -> str | None:
        """Google's number of it, by which it is called; None where the name is none."""
        found = _NUMBERED.fullmatch(self.name)
        return found["number"] if found else None

    @property
    def launch_id(self) -> str | None:
        """The launch that it is; None where it is none of ours."""
        launch_id = self.labels.get(LAUNCH_LABEL, "")
        return launch_id if is_launch_id(launch_id) else None

    def is_on(self, machine_type: str) -> bool:
        """Whether its machine is of this type, or that is not known; "" is any."""
        pools = self.job_spec.worker_pool_specs
        return not machine_type or not pools or pools[0].machine_spec.machine_type == machine_type

    @property
    def is_ended(self) -> bool:
        """Whether nothing more happens to it, and nothing more is billed."""
        return self.state in _ENDED

    @property
    def is_live(self) -> bool:
        """Whether it waits or works, and nobody has asked for its end."""
        return self.state in LIVE_STATES

    def bears(self, mark: str, launch_id: str) -> bool:
        """Whether it is this launch, of this project."""
        return self.labels.get(PROJECT_LABEL) == mark and self.launch_id == launch_id

    def is_overdue(self, now: datetime) -> bool:
        """Whether it waits for longer than its launch may take altogether."""
        waited = _between(self.create_time, now)
        return self.state in WAITING and self._ttl_seconds is not None and (waited or 0.0) > self._ttl_seconds

    @property
    def ran_seconds(self) -> float | None:
        """How long it worked; None while that is not known. Google bills this time, less what a machine was away."""
        if self.start_time is None:
            return 0.0 if self.is_ended else None
        return _between(self.start_time, self.end_time)

    @property
    def _timeout_seconds(self) -> float | None:
        found = re.fullmatch(r"([0-9]{1,9})(\.[0-9]{1,9})?s", self.job_spec.scheduling.timeout)
        return float(found[1]) if found else None

    @property
    def _ttl_seconds(self) -> float | None:
        text = self.labels.get(TTL_LABEL, "")
        return float(text) if re.fullmatch(r"[0-9]{1,9}", text) else None

    @property
    def ended_unstarted(self) -> bool:
        """Whether it has ended because it found no machine: it never ran."""
        if self.start_time is not None:
            return False
        if self.state == "JOB_STATE_EXPIRED":
            return True
        if self.state == "JOB_STATE_CANCELLED":
            waited = _between(self.create_time, self.end_time)
            return waited is not None and self._ttl_seconds is not None and waited > self._ttl_seconds
        return self.state == "JOB_STATE_FAILED" and self._found_no_machine

    def waits_long(self, now: datetime) -> bool:
        """Whether it waits for more than a machine's start: Google keeps it so while the project lacks the quota."""
        waited = _between(self.create_time, now)
        return self.state == "JOB_STATE_QUEUED" and waited is not None and waited > _LONG_WAIT_SECONDS

    def is_starting(self, now: datetime) -> bool:
        """Whether a machine may be starting for it. With FLEX_START Google lets it wait for one in the same state."""
        waited = _between(self.create_time, now)
        is_pending = self.state == "JOB_STATE_PENDING" and self.job_spec.scheduling.strategy != "FLEX_START"
        return is_pending and waited is not None and waited < _START_SECONDS

    def is_recent_stockout(self, now: datetime) -> bool:
        """Whether it has just ended because the region had no machine for it."""
        ago = _between(self.end_time, now)
        return self.ended_unstarted and ago is not None and ago < _STOCKOUT_SECONDS

    @property
    def _found_no_machine(self) -> bool:
        error = self.error or _Error()
        return error.code == _RESOURCE_EXHAUSTED or bool(_NO_MACHINE.search(error.message[:4000]))

    @property
    def used_its_time(self) -> bool:
        """Whether it worked as long as it might: Google cancels it then, without saying why."""
        ran, timeout = self.ran_seconds, self._timeout_seconds
        if self.start_time is None or ran is None or timeout is None:
            return False
        return ran + _CLOCK_SLACK_SECONDS >= timeout

    def cause(self) -> EndCause:
        """Why it failed, as far as Google says."""
        error = self.error or _Error()
        message = error.message[:4000]
        status = _STATUS.search(message)
        if self.used_its_time or error.code == _DEADLINE_EXCEEDED or (not status and _OVER_TIME.search(message)):
            return EndCause.OVER_TIME
        if _MEMORY.search(message):
            return EndCause.OUT_OF_MEMORY
        if status:
            if _IMPORT.search(message):
                return EndCause.IMPORT_FAILED
            return EndCause.LOST if int(status[1]) in _KILLED else EndCause.RAISED
        if self._found_no_machine or error.code in {_INTERNAL, _UNAVAILABLE}:
            return EndCause.LOST
        return EndCause.UNKNOWN


def read_job(value: Any) -> Job:
    """The job of an answer.

    Raises:
        ValueError: it is none; the text names the first field that is wrong.
    """
    try:
        return Job.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "answer"
        raise ValueError(f"the job's {where:.60} can't be read") from None


def read_observation(job: Job, now: datetime) -> Observation:
    """A look at a job, at this time. The output is always None: a trainer reports by its run's own channel."""
    is_at_work = job.state in AT_WORK and job.start_time is not None
    state, cause, reason = _meaning(job)
    return Observation(
        state,
        cause=cause,
        reason=reason,
        execution_seconds=_between(job.start_time, now) if is_at_work else job.ran_seconds,
        queue_seconds=_between(job.create_time, job.start_time or job.end_time or now),
        container=job.number,
    )


def _meaning(job: Job) -> tuple[LaunchState, EndCause, str | None]:
    """A job's state in the launchers' words, why it failed, and why its state is not known."""
    if job.ended_unstarted:
        return LaunchState.TIMED_OUT, EndCause.UNKNOWN, None
    if job.state in _COMPLETED:
        return LaunchState.COMPLETED, EndCause.UNKNOWN, None
    if job.state == "JOB_STATE_FAILED":
        return LaunchState.FAILED, job.cause(), None
    if job.state == "JOB_STATE_CANCELLED":
        if job.used_its_time:
            return LaunchState.FAILED, EndCause.OVER_TIME, None
        return LaunchState.CANCELLED, EndCause.UNKNOWN, None
    if job.state == "JOB_STATE_EXPIRED":
        return LaunchState.FAILED, EndCause.OVER_TIME, None
    if job.state == "JOB_STATE_CANCELLING" and job.start_time is None:
        # It waited when somebody asked for its end: nothing has begun.
        return LaunchState.QUEUED, EndCause.UNKNOWN, None
    if job.state in AT_WORK:
        return LaunchState.RUNNING, EndCause.UNKNOWN, None
    if job.state in WAITING:
        return LaunchState.QUEUED, EndCause.UNKNOWN, None
    return LaunchState.UNKNOWN, EndCause.UNKNOWN, f"its state is {job.state!r}, which this worker does not know"


def read_health(live: Sequence[Job], failed: Sequence[Job], now: datetime) -> EndpointHealth:
    """What a region's jobs say of it, those that live and some that have failed: of its machines nothing else is told
    before one is asked for."""
    running = sum(job.state in AT_WORK for job in live)
    starting = sum(job.is_starting(now) for job in live)
    if any(job.state == "JOB_STATE_PENDING" and not job.is_starting(now) for job in live):
        # The region lacks machines. Taken for slow starts, this would blame the image and hold all jobs.
        starting = 0
    queued = sum(job.state in WAITING for job in live)
    problem = None
    if not running and any(job.is_recent_stockout(now) for job in failed):
        problem = "it had no free machine of this kind, or no quota for one, within the last quarter of an hour"
    elif not running and any(job.waits_long(now) for job in live):
        problem = (
            "jobs wait there for quota of custom training: raise it in Google Cloud's console (IAM & Admin, Quotas)"
        )
    return EndpointHealth(
        True, running + starting, queued, problem, running=running, starting=starting, jobs_running=running
    )


def _between(start: datetime | None, end: datetime | None) -> float | None:
    """Seconds between two instants, 0 where a clock is behind; None where one is not known, or can't be meant."""
    if start is None or end is None:
        return None
    seconds = max((end - start).total_seconds(), 0.0)
    return seconds if seconds <= _MOST_SECONDS else None
