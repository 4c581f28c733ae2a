"""What is known of a held run as one entry of `record_progress`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lora_worker.runs import notices
from lora_worker.runs.report_rows import point_rows, progress_columns, waiting_columns

if TYPE_CHECKING:
    from lora_worker.runs.held_run import Holding


def progress_report(holding: Holding) -> dict[str, Any] | None:
    """A report of what was last heard of the run; None for a job that was deleted."""
    progress, job, cost = holding.progress, holding.assignment.job, holding.cost(holding.gpu_seconds())
    if progress is None or job is None:
        return make_report(holding, {"current_cost": cost, **_waiting_columns(holding)})
    columns = progress_columns(progress, total_epochs=job.total_epochs, cost=cost, now=holding.services.now())
    points = point_rows(progress.points, total_steps=progress.total_steps, limit=holding.services.settings.chart_points)
    return make_report(holding, columns, points)


def _waiting_columns(holding: Holding) -> dict[str, Any]:
    if holding.observation is None:
        return {}
    return waiting_columns(
        holding.observation.state,
        checked_in=holding.news.checked_in_at is not None,
        endpoint_has_problem=holding.endpoint.problem is not None,
    )


def make_report(
    holding: Holding, columns: dict[str, Any], points: Sequence[dict[str, Any]] = ()
) -> dict[str, Any] | None:
    """A report of job columns and points, for `record_progress`; None for a job that was deleted."""
    run = holding.assignment.run
    if holding.assignment.job is None:
        return None
    return {
        "run_id": str(run.id),
        "lease_token": str(run.lease_token),
        "job": columns,
        "points": list(points),
        "most_points": holding.services.settings.chart_points,
        "notices": [started_notice(holding)] if holding.news.checked_in_at else [],
        "problem": holding.problem,
    }


def started_notice(holding: Holding) -> dict[str, Any]:
    """The notice that the GPU has begun; the database keeps only the first."""
    name = holding.assignment.dataset.name if holding.assignment.dataset else "your dataset"
    return notices.job_started(holding.assignment.run.job_id, name, holding.rate.gpu_type, holding.rate.gpu_count)
