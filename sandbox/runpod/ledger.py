"""What happened on the endpoint, for assertions: every launch, every execution, every call counted.

A launch is an accepted `/run`; an execution is one hand-over of a job to one worker process. RunPod
shows neither list, which is why a test that asks "was this run trained twice?" needs this one. Times
are seconds of the endpoint's clock.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

RefusedThen = Literal["stuck", "retried", "completed"]
"""What becomes of a job whose result RunPod refused; all three were seen: IN_PROGRESS until the ttl,
dispatched again, COMPLETED without output."""


class Outcome(StrEnum):
    """How an execution ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"
    """Ended without a result after RunPod asked it to: cancelled, over its time, or deleted."""
    LOST = "lost"
    """The worker died, or came back for work without having answered."""
    RESULT_LOST = "result_lost"
    """It ran to its end, and RunPod refused the result."""
    IGNORED = "ignored"
    """Its result came when the job had ended already."""


@dataclass(frozen=True)
class Launch:
    """One accepted submission. `run_id` is what the input called itself, when it did."""

    job_id: str
    run_id: str | None
    at: float


@dataclass
class Execution:
    """One worker process having one job. Open until the process is known to be done with it."""

    job_id: str
    run_id: str | None
    worker_id: str
    started_at: float
    ended_at: float | None = None
    outcome: Outcome | None = None
    stop_requested: bool = False
    refused_then: RefusedThen | None = None
    """What follows when its result was refused, and that it was."""

    @property
    def is_open(self) -> bool:
        """Whether the worker still has the job."""
        return self.ended_at is None

    def end(self, outcome: Outcome, at: float) -> None:
        """Close it; a second call changes nothing."""
        if self.is_open:
            self.outcome, self.ended_at = outcome, at


@dataclass
class Ledger:
    """Append-only. Reading it from another thread sees whole entries."""

    launches: list[Launch] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    """How often each operation was called, refused calls included."""

    def executions_of(self, job_id: str) -> list[Execution]:
        """Every execution of one job, in the order in which they began."""
        return [execution for execution in tuple(self.executions) if execution.job_id == job_id]

    def as_json(self) -> dict[str, Any]:
        """Everything, for a test in another process."""
        return {
            "launches": [asdict(launch) for launch in tuple(self.launches)],
            "executions": [asdict(execution) for execution in tuple(self.executions)],
            "calls": dict(self.calls),
        }
