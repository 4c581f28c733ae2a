"""Records what happened at the endpoint, for assertions of tests: launches, executions, writes and numbers of calls.

A launch is an accepted `/run`. An execution begins each time that a job is given to a worker process. The real RunPod
shows neither, so a test that asks whether a run was trained twice needs these lists. Times are seconds of the
endpoint's clock.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

RefusedThen = Literal["stuck", "retried", "completed"]
"""What happens to a job whose result RunPod refused. It stays IN_PROGRESS until its ttl (“stuck”), is dispatched again
(“retried”), or becomes COMPLETED without output (“completed”). All three were seen at the real RunPod."""


class Outcome(StrEnum):
    """How an execution ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"
    """Ended without a result because RunPod told the worker to stop: the job was cancelled, deleted or timed out."""
    LOST = "lost"
    """The worker died, or asked for work without having sent a result."""
    RESULT_LOST = "result_lost"
    """The worker sent a result, but RunPod refused it."""
    IGNORED = "ignored"
    """The result arrived after the job had ended."""


@dataclass(frozen=True)
class Launch:
    """An accepted `/run`. `run_id` is that of the input, if it has one."""

    job_id: str
    run_id: str | None
    at: float


@dataclass
class Execution:
    """The work of one worker process on one job. It is open until the process has ended it or died."""

    job_id: str
    run_id: str | None
    worker_id: str
    started_at: float
    ended_at: float | None = None
    outcome: Outcome | None = None
    stop_requested: bool = False
    refused_then: RefusedThen | None = None
    """Set if the result was refused: what happens to the job then."""

    @property
    def is_open(self) -> bool:
        """Whether the worker still has the job."""
        return self.ended_at is None

    def end(self, outcome: Outcome, at: float) -> None:
        """End the execution. A second call changes nothing."""
        if self.is_open:
            self.outcome, self.ended_at = outcome, at


@dataclass
class PodLife:
    """A pod from its creation to its termination, for which it is billed; `ended_at` is None while it lives."""

    pod_id: str
    name: str
    created_at: float
    ended_at: float | None = None
    starts: int = 0
    """How often its container was started."""


@dataclass(frozen=True)
class Write:
    """A call of the REST API that creates, changes or deletes, with the status of its answer, and its body if valid.

    Calls that a fault kept from being carried out are not among them. Credentials are left out of the body.
    """

    operation: str
    path: str
    status: int
    at: float
    body: dict[str, Any] | None


@dataclass
class Ledger:
    """The recorded events. Entries are only appended, so other threads can read the lists at any time."""

    launches: list[Launch] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    pods: list[PodLife] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    """How often each operation was called, including refused calls."""

    def executions_of(self, job_id: str) -> list[Execution]:
        """Return all executions of a job, in the order in which they began."""
        return [execution for execution in tuple(self.executions) if execution.job_id == job_id]

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON, for a test in another process."""
        return {
            "launches": [asdict(launch) for launch in tuple(self.launches)],
            "executions": [asdict(execution) for execution in tuple(self.executions)],
            "pods": [asdict(pod) for pod in tuple(self.pods)],
            "writes": [asdict(write) for write in tuple(self.writes)],
            "calls": dict(self.calls),
        }
