"""What is known of a held run, as one entry of `record_progress`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_worker.runs.rows import notices
from lora_worker.runs.rows.report_rows import point_rows, progress_columns, waiting_columns
from lora_worker.runs.state.held_run import HeldRun


def progress_report(held: HeldRun) -> dict[str, Any] | None:
    """The entry with the run's latest progress; None for a job that was deleted."""
    progress, job, cost = held.progress, held.assignment.job, held.cost(held.gpu_seconds())
    if progress is None or job is None:
        return make_report(held, {"current_cost": cost, **_waiting_columns(held)})
    columns = progress_columns(progress, total_epochs=job.total_epochs, cost=cost, now=held.services.now())
    points = point_rows(progress.points, total_steps=progress.total_steps, limit=held.services.settings.chart_points)
    return make_report(held, columns, points)


def _waiting_columns(held: HeldRun) -> dict[str, Any]:
    if held.observation is None:
        return {}
    return waiting_columns(
        held.observation.state,
        checked_in=held.has_checked_in,
        endpoint_has_problem=held.endpoint.problem is not None,
    )


def make_report(held: HeldRun, columns: dict[str, Any], points: Sequence[dict[str, Any]] = ()) -> dict[str, Any] | None:
    """The entry with these columns of the job and rows of `metrics_points`; None for a job that was deleted."""
    run = held.assignment.run
    if held.assignment.job is None:
        return None
    return {
        "run_id": held.run_id,
        "lease_token": str(run.lease_token),
        "job": columns,
        "points": list(points),
        "most_points": held.services.settings.chart_points,
        "notices": [started_notice(held)] if held.has_checked_in else [],
        "problem": held.problem,
    }


def started_notice(held: HeldRun) -> dict[str, Any]:
    """The notice that the GPU has begun. It may be sent again and again: the database keeps only the first."""
    name = held.assignment.dataset.name if held.assignment.dataset else "your dataset"
    return notices.job_started(held.assignment.run.job_id, name, held.rate.gpu_type, held.rate.gpu_count)
