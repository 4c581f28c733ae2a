"""Judges one fault by the records of the database, the cloud and the trainings. Pure functions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from sandbox.runpod import Execution, Launch
from sandbox.standin import TrainedStep, runs_trained_twice

OVERLAP_SECONDS = 2.0
"""When RunPod gives one job to two workers, the later one takes the run over and the earlier one learns
it with its next heartbeat (half a second here), while the later one still starts. A longer overlap is a fault."""

ENDED = frozenset({"completed", "failed", "cancelled"})
LIVE = frozenset({"claimed", "launched", "running"})

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The records of some jobs. Rows hold the columns named here, ids as text."""

    jobs: Rows
    """id, status, artifact_id, final_cost, error_message"""
    runs: Rows
    """id, job_id, status"""
    points: Rows
    """job_id, step, times"""
    artifacts: Rows
    """id, job_id"""
    costs: Rows
    """run_id"""
    notices: Rows
    """job_id, type, run_id (of job_requeued only, else null)"""
    launches: Sequence[Launch] = ()
    steps: Sequence[TrainedStep] = ()
    orphans: Sequence[Execution] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table. The suite fails unless `is_clean`."""

    fault: str
    jobs: int
    completed: int
    failed: int
    cancelled: int
    lost: int
    wrong: int
    trained_twice: int
    trainings: int
    launches: int
    orphans: int
    duplicate_points: int
    duplicate_artifacts: int
    duplicate_costs: int
    duplicate_notices: int
    missing: int
    recovery_seconds: float | None = None
    seconds: float = 0
    complaints: tuple[str, ...] = field(default=())

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        return not self.complaints


def judge(fault: str, evidence: Evidence, ends: Mapping[str, frozenset[str]]) -> Row:
    """The row of a fault; `ends` gives for each job the statuses in which it may have ended."""
    by_job = {str(job["id"]): job for job in evidence.jobs}
    live = {run["job_id"] for run in evidence.runs if run["status"] in LIVE}
    lost = [job for job in ends if job not in by_job or by_job[job]["status"] not in ENDED or job in live]
    status = {job: by_job[job]["status"] for job in ends if job not in lost}
    wrong = [f"{job} {status[job]}: {by_job[job]['error_message']}" for job in status if status[job] not in ends[job]]
    twice = sorted(runs_trained_twice(evidence.steps) | runs_trained_side_by_side(evidence.steps))
    missing = list(_missing(evidence, status))
    counts = Counter(status.values())
    duplicates = {
        "metrics_points": [f"{row['job_id']} step {row['step']}" for row in evidence.points if row["times"] > 1],
        "model_artifacts": _repeated(evidence.artifacts, lambda row: row["job_id"]),
        "cost_records": _repeated(evidence.costs, lambda row: row["run_id"]),
        "notifications": _repeated(evidence.notices, lambda row: (row["job_id"], row["type"], row["run_id"])),
    }
    complaints = [
        *(f"lost: {job}" for job in lost),
        *(f"wrongly ended: {text}" for text in wrong),
        *(f"trained twice: run {run}" for run in twice),
        *(f"orphan: {orphan.job_id} of run {orphan.run_id}" for orphan in evidence.orphans),
        *(f"twice in {table}: {what}" for table, found in duplicates.items() for what in found),
        *(f"missing: {what}" for what in missing),
    ]
    return Row(
        fault=fault,
        jobs=len(ends),
        completed=counts["completed"],
        failed=counts["failed"],
        cancelled=counts["cancelled"],
        lost=len(lost),
        wrong=len(wrong),
        trained_twice=len(twice),
        trainings=len({(step.run_id, step.execution_id) for step in evidence.steps if step.step == step.total_steps}),
        launches=len(evidence.launches),
        orphans=len(evidence.orphans),
        duplicate_points=len(duplicates["metrics_points"]),
        duplicate_artifacts=len(duplicates["model_artifacts"]),
        duplicate_costs=len(duplicates["cost_records"]),
        duplicate_notices=len(duplicates["notifications"]),
        missing=len(missing),
        complaints=tuple(complaints),
    )


def runs_trained_side_by_side(steps: Iterable[TrainedStep]) -> set[str]:
    """Runs that two executions trained at the same time for longer than the fence needs to stop one."""
    spans: defaultdict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for step in steps:
        first, last = spans[step.run_id].get(step.execution_id, (step.at, step.at))
        spans[step.run_id][step.execution_id] = (min(first, step.at), max(last, step.at))
    return {
        run_id
        for run_id, executions in spans.items()
        if any(_overlap(one, other) > OVERLAP_SECONDS for one, other in combinations(executions.values(), 2))
    }


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    return min(one[1], other[1]) - max(one[0], other[0])


def _repeated(rows: Rows, key: Callable[[Mapping[str, Any]], Any]) -> list[str]:
    return [str(value) for value, times in Counter(map(key, rows)).items() if times > 1]


def _missing(evidence: Evidence, status: Mapping[str, str]) -> Iterable[str]:
    """Rows that are missing although a job or run has ended."""
    job_of = {run["id"]: run["job_id"] for run in evidence.runs}
    trained = {step.run_id for step in evidence.steps}
    total = {job_of.get(step.run_id): step.total_steps for step in evidence.steps}
    points = Counter(row["job_id"] for row in evidence.points)
    artifacts = {row["job_id"]: row["id"] for row in evidence.artifacts}
    noticed = {(row["job_id"], row["type"]) for row in evidence.notices}
    billed = {row["run_id"] for row in evidence.costs}
    for job in evidence.jobs:
        end = status.get(job["id"])
        if end is None:
            continue
        if end == "completed":
            if artifacts.get(job["id"]) is None or job["artifact_id"] != artifacts[job["id"]]:
                yield f"the artifact of job {job['id']}"
            if points[job["id"]] != total.get(job["id"]):
                yield f"points of job {job['id']}: {points[job['id']]} of {total.get(job['id'])}"
        # A plain UPDATE of the application cancels without a notification if no run is live.
        if end != "cancelled" and (job["id"], f"job_{end}") not in noticed:
            yield f"the notice that job {job['id']} has {end}"
        if end != "cancelled" and job["final_cost"] is None:
            yield f"the final cost of job {job['id']}"
    for run in evidence.runs:
        if run["id"] in trained and run["status"] not in LIVE and run["id"] not in billed:
            yield f"the cost record of run {run['id']}"
