"""The life of the jobs of one endpoint: statuses, time-outs, retention and redispatch, without any I/O.

RunPod documents little about unusual cases. Here they behave as was seen at the real RunPod; where nothing was seen, in
the way that is harder for our code, so that code which works here also works there. The first result counts, whichever
worker sends it. The ttl deletes a job in any state. A lost job is dispatched once more under its old id, and fails when
it is lost again. Times are seconds of the injected clock.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from uuid import uuid4

from sandbox.runpod.ledger import Execution, Launch, Ledger, Outcome, RefusedThen

RESULT_RETENTION_SECONDS = 30 * 60.0
SYNC_RESULT_RETENTION_SECONDS = 60.0
DISPATCHES = 2
"""How often a job is dispatched: once, and once more by RunPod's own retry."""

_WEEK_MS = 7 * 24 * 3600 * 1000


class Status(StrEnum):
    """RunPod's statuses of a job."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.TIMED_OUT})


class UnknownJobError(LookupError):
    """The job does not exist: its id is wrong, or its result is no longer kept."""


class BadRequestError(ValueError):
    """The body of the call is wrong, or the job's state does not allow the call; the text says why."""


@dataclass(frozen=True)
class Policy:
    """How long a job may run, and how long it may exist, counted from its submission."""

    execution_timeout_seconds: float = 600
    ttl_seconds: float = 24 * 3600

    @classmethod
    def parse(cls, raw: Any, *, execution_timeout_seconds: float = 600) -> Policy:
        """Read the `policy` of the body of `/run`, whose values are in milliseconds.

        `execution_timeout_seconds` is the endpoint's, which holds for a job that has none of its own.

        Raises:
            BadRequestError: a value is not in RunPod's range.
        """
        if raw is None:
            return cls(execution_timeout_seconds)
        if not isinstance(raw, dict):
            raise BadRequestError("policy must be an object")
        milliseconds = {}
        for key, least, default in (
            ("executionTimeout", 5_000, execution_timeout_seconds),
            ("ttl", 10_000, cls.ttl_seconds),
        ):
            value = raw.get(key, int(default * 1000))
            if type(value) is not int or not least <= value <= _WEEK_MS:
                raise BadRequestError(f"policy.{key} must be whole milliseconds from {least} to {_WEEK_MS}")
            milliseconds[key] = value
        return cls(milliseconds["executionTimeout"] / 1000, milliseconds["ttl"] / 1000)


@dataclass
class Job:
    """A submitted job. `result` has the keys `output` and `error`, if there are any."""

    id: str
    request: dict[str, Any]
    policy: Policy
    retention_seconds: float
    submitted_at: float
    queued_at: float
    status: Status = Status.IN_QUEUE
    started_at: float | None = None
    ended_at: float | None = None
    worker_id: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    last_progress: Any = None
    chunks: list[Any] = field(default_factory=list)
    retries: int = 0

    @property
    def is_over(self) -> bool:
        """Whether the status is final."""
        return self.status in TERMINAL

    @property
    def is_waiting(self) -> bool:
        """Whether the job waits for a worker."""
        return self.status is Status.IN_QUEUE

    @property
    def run_id(self) -> str | None:
        """The `run_id` of the job's input, if it has one."""
        value = self.request["input"].get("run_id")
        return value if isinstance(value, str) else None

    def answer(self, now: float) -> dict[str, Any]:
        """Return the body of `/status`, with times in milliseconds. Keys that RunPod omits are missing here, too."""
        answer: dict[str, Any] = {"id": self.id, "status": self.status, **self.result}
        if self.started_at is not None:
            # The delay starts again with a redispatch, so delay and execution are together less than the wall clock.
            answer["delayTime"] = _ms(self.started_at - self.queued_at)
            answer["executionTime"] = _ms((self.ended_at or now) - self.started_at)
            answer["workerId"] = self.worker_id
        if self.retries:
            answer["retries"] = self.retries
        return answer


def _ms(seconds: float) -> int:
    return max(round(seconds * 1000), 0)


class Jobs:
    """All jobs of one endpoint, and which worker has which job."""

    def __init__(self, clock: Callable[[], float], ledger: Ledger) -> None:
        self.execution_timeout_seconds: float = 600
        """The time-out of jobs that are submitted without one."""
        self._now = clock
        self._ledger = ledger
        self._jobs: dict[str, Job] = {}
        self._queue: deque[str] = deque()
        self._twice: set[str] = set()
        self._open: dict[str, Execution] = {}

    # The public API's side

    def submit(self, request: Any, *, sync: bool = False) -> Job:
        """Accept the body of `/run` or `/runsync`.

        Raises:
            BadRequestError: the body is not an object with an object `input`, or its policy is out of range.
        """
        if not isinstance(request, dict) or not isinstance(request.get("input"), dict):
            raise BadRequestError("the body must be an object with an object `input`")
        now = self._now()
        job = Job(
            id=f"{'sync-' if sync else ''}{uuid4()}-u1",
            request=request,
            policy=Policy.parse(request.get("policy"), execution_timeout_seconds=self.execution_timeout_seconds),
            retention_seconds=SYNC_RESULT_RETENTION_SECONDS if sync else RESULT_RETENTION_SECONDS,
            submitted_at=now,
            queued_at=now,
        )
        self._jobs[job.id] = job
        self._queue.append(job.id)
        self._ledger.launches.append(Launch(job.id, job.run_id, now))
        return job

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            UnknownJobError: the job does not exist, or is no longer kept.
        """
        try:
            return self._jobs[job_id]
        except KeyError:
            raise UnknownJobError(job_id) from None

    def all(self) -> list[Job]:
        """Return all jobs that are still kept, oldest first."""
        return list(self._jobs.values())

    def cancel(self, job_id: str) -> Job:
        """Cancel a job. Nothing changes if it has ended already."""
        job = self.get(job_id)
        if not job.is_over:
            self._end(job, Status.CANCELLED, {})
        return job

    def retry(self, job_id: str) -> Job:
        """Queue a failed job again under its old id, without its old output.

        Raises:
            UnknownJobError: the job is no longer kept.
            BadRequestError: the job is neither FAILED nor TIMED_OUT.
        """
        job = self.get(job_id)
        if job.status not in {Status.FAILED, Status.TIMED_OUT}:
            raise BadRequestError(f"only FAILED and TIMED_OUT jobs can be retried, this one is {job.status}")
        self._requeue(job)
        return job

    def purge(self) -> int:
        """Delete all waiting jobs; returns how many there were."""
        waiting = list(self._queue)
        for job_id in waiting:
            self.forget(job_id)
        return len(waiting)

    def forget(self, job_id: str) -> None:
        """Delete a job in any state. Its worker is told to stop."""
        if job_id in self._jobs:
            self._leave_queue(job_id)
            self._request_stop(job_id)
            del self._jobs[job_id]

    # The workers' side

    def take(self, worker_id: str) -> Job | None:
        """Give the oldest waiting job to a worker that has none; None if no job waits."""
        job = self.upcoming(worker_id)
        if job is None:
            return None
        if job.is_waiting:
            self._queue.popleft()
            job.status, job.worker_id, job.started_at = Status.IN_PROGRESS, worker_id, self._now()
        else:
            self._twice.discard(job.id)
        execution = Execution(job.id, job.run_id, worker_id, self._now())
        self._open[worker_id] = execution
        self._ledger.executions.append(execution)
        return job

    def upcoming(self, worker_id: str) -> Job | None:
        """Return the job that `take` would give to this worker."""
        repeated = (job for job_id in self._twice if (job := self._jobs[job_id]).worker_id != worker_id)
        return next(repeated, None) or (self._jobs[self._queue[0]] if self._queue else None)

    def leave(self, worker_id: str) -> None:
        """Record that a worker has no job any more: it says so, or it has died."""
        execution = self._open.pop(worker_id, None)
        if execution is None:
            return
        job = self._jobs.get(execution.job_id)
        if execution.refused_then is not None:
            outcome = Outcome.RESULT_LOST
        elif execution.stop_requested:
            outcome = Outcome.STOPPED
        else:
            outcome = Outcome.LOST
        if job is not None and not execution.stop_requested and execution.refused_then in {None, "retried"}:
            self._lose(job, worker_id)
        execution.end(outcome, self._now())

    def suspect(self, worker_id: str) -> None:
        """Give the job of a silent worker to another one. The silent one may still be working on it."""
        execution = self._open.get(worker_id)
        if execution is not None and (job := self._jobs.get(execution.job_id)) is not None:
            self._lose(job, worker_id)

    def progress(self, job_id: str, output: Any, *, guarded: bool = True) -> None:
        """Show `output` in the job's status. If not `guarded`, it also overwrites a result."""
        job = self._jobs.get(job_id)
        if job is None or (job.is_over and guarded):
            return
        job.last_progress = output
        if job.is_over:
            self.revive(job_id)
        elif job.status is Status.IN_PROGRESS:
            job.result = {"output": output}

    def revive(self, job_id: str) -> None:
        """Overwrite the result by the last progress, as was seen when a post arrived late. The job never ends then."""
        job = self.get(job_id)
        job.status, job.ended_at, job.result = Status.IN_PROGRESS, None, {"output": job.last_progress}

    def finish(self, job_id: str, worker_id: str, result: dict[str, Any]) -> None:
        """Take a worker's result, which may have the keys `output` and `error`."""
        job, execution = self._jobs.get(job_id), self.execution_on(worker_id, job_id)
        if execution is not None:
            del self._open[worker_id]
        outcome = Outcome.IGNORED
        if job is not None and not job.is_over:
            outcome = Outcome.FAILED if result.get("error") else Outcome.COMPLETED
            status = Status.FAILED if outcome is Outcome.FAILED else Status.COMPLETED
            job.worker_id = worker_id
            self._end(job, status, {key: result[key] for key in ("output", "error") if key in result})
        if execution is not None:
            execution.end(outcome, self._now())

    def refuse_result(self, worker_id: str, job_id: str, then: RefusedThen) -> None:
        """Refuse a worker's result, so that the worker gives up. `then` says what happens to the job."""
        execution, job = self.execution_on(worker_id, job_id), self._jobs.get(job_id)
        if execution is not None:
            execution.refused_then = then
        if then == "completed" and job is not None and not job.is_over:
            self._end(job, Status.COMPLETED, {})

    def add_chunk(self, job_id: str, chunk: Any) -> None:
        """Store a part of a generator's output for `/stream`."""
        if job_id in self._jobs:
            self._jobs[job_id].chunks.append(chunk)

    def execution_on(self, worker_id: str, job_id: str | None = None) -> Execution | None:
        """Return the worker's open execution; None if it is idle, or has another job than `job_id`."""
        execution = self._open.get(worker_id)
        return execution if execution is not None and job_id in {None, execution.job_id} else None

    def stops_for(self, worker_id: str) -> list[str]:
        """Return the ids of jobs that the worker must stop. They are repeated until it has: an answer may be lost."""
        execution = self._open.get(worker_id)
        return [execution.job_id] if execution is not None and execution.stop_requested else []

    def open_executions(self) -> list[Execution]:
        """Return all executions that have not ended."""
        return list(self._open.values())

    def waiting(self) -> int:
        """Return how many jobs must be given to workers."""
        return len(self._queue) + len(self._twice)

    # Time and mishaps

    def expire(self) -> None:
        """Apply execution time-out, ttl and retention."""
        now = self._now()
        for job in self.all():
            if now >= job.submitted_at + job.policy.ttl_seconds or (
                job.ended_at is not None and now >= job.ended_at + job.retention_seconds
            ):
                self.forget(job.id)
            elif self._is_over_time(job, now):
                self._end(job, Status.FAILED, {"error": "executionTimeout exceeded"})

    def time_out(self, job_id: str) -> None:
        """End a job as TIMED_OUT, as if no worker had taken it in time."""
        self._end(self.get(job_id), Status.TIMED_OUT, {"error": "job timed out"})

    def deliver_twice(self, job_id: str) -> None:
        """Give a job that a worker already has to another worker as well."""
        self._twice.add(job_id)

    def counts(self) -> dict[str, int]:
        """Return the `jobs` of `/health`."""
        by_status = Counter(job.status for job in self._jobs.values())
        return {
            "completed": by_status[Status.COMPLETED],
            "failed": by_status[Status.FAILED] + by_status[Status.TIMED_OUT],
            "inProgress": by_status[Status.IN_PROGRESS],
            "inQueue": by_status[Status.IN_QUEUE],
            "retried": sum(job.retries for job in self._jobs.values()),
        }

    def _is_over_time(self, job: Job, now: float) -> bool:
        # A job whose result was refused has no execution any more. It stays IN_PROGRESS until its ttl is over.
        return (
            job.status is Status.IN_PROGRESS
            and job.started_at is not None
            and now >= job.started_at + job.policy.execution_timeout_seconds
            and any(execution.job_id == job.id for execution in self._open.values())
        )

    def _lose(self, job: Job, worker_id: str) -> None:
        if job.status is not Status.IN_PROGRESS or job.worker_id != worker_id:
            return
        if job.retries + 1 < DISPATCHES:
            job.retries += 1
            self._requeue(job)
        else:
            self._end(job, Status.FAILED, {"error": f"job timed out after {job.retries} retries"})

    def _requeue(self, job: Job) -> None:
        job.status, job.result, job.worker_id = Status.IN_QUEUE, {}, None
        job.queued_at, job.started_at, job.ended_at = self._now(), None, None
        self._twice.discard(job.id)
        self._queue.append(job.id)

    def _end(self, job: Job, status: Status, result: dict[str, Any]) -> None:
        self._leave_queue(job.id)
        if status is not Status.COMPLETED:
            self._request_stop(job.id)
        job.status, job.result, job.ended_at = status, result, self._now()

    def _leave_queue(self, job_id: str) -> None:
        self._twice.discard(job_id)
        if job_id in self._queue:
            self._queue.remove(job_id)

    def _request_stop(self, job_id: str) -> None:
        for execution in self._open.values():
            if execution.job_id == job_id:
                execution.stop_requested = True
