"""Turns what the trainer reports into columns of the job and rows of `metrics_points`, within the columns' ranges."""

from __future__ import annotations

import math
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from lora_contract.bounds import spread
from lora_contract.curve import thin_points
from lora_contract.protocol import MAX_POINTS, STAGES, FinalMetrics, Point, Progress, Summary
from lora_worker.launchers.base import LaunchState

_REWARD_KEYS = ("reward_margin", "reward_accuracy")
"""Of preference methods. `metrics_points` has no column for them; `current_metrics` and the newer queue have room."""
_METRIC_KEYS = ("training_loss", "validation_loss", "learning_rate", "throughput", "gpu_utilization", *_REWARD_KEYS)

# Largest magnitudes that metrics_points holds: decimal(10,6), (12,10), (10,2) and (5,2). Rewards are bounded alike.
_LIMITS = {
    "training_loss": 9999.999999,
    "validation_loss": 9999.999999,
    "gradient_norm": 9999.999999,
    "learning_rate": 99.9999999999,
    "throughput": 99999999.99,
    "gpu_utilization": 999.99,
    "reward_margin": 9999.999999,
    "reward_accuracy": 1.0,
}


def _within(key: str, value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return max(-_LIMITS[key], min(value, _LIMITS[key]))


def point_row(point: Point) -> dict[str, Any] | None:
    """A row of `metrics_points`; None for a point without a training loss, which the table can't hold."""
    values = {key: _within(key, getattr(point, key)) for key in _LIMITS}
    if values["training_loss"] is None:
        return None
    stamp = None if point.timestamp is None else datetime.fromtimestamp(point.timestamp, UTC).isoformat()
    return {
        "step": point.step,
        # The epoch being trained, from 1, as the pages count it.
        "epoch": max(1, math.ceil(point.epoch)),
        "timestamp": stamp,
        **values,
        "learning_rate": values["learning_rate"] or 0.0,
    }


def point_rows(points: list[Point], *, total_steps: int | None, limit: int) -> list[dict[str, Any]]:
    """The rows of a curve that the chart keeps.

    Each holds the validation loss that was last measured: the page draws lines without dots, and a single value
    between nulls would not be seen.
    """
    if not points:
        return []
    kept = thin_points(points, total_steps=total_steps or max(point.step for point in points), limit=limit)
    validated = _carry_forward(points)
    rows = (point_row(point.model_copy(update={"validation_loss": validated[point.step]})) for point in kept)
    return [row for row in rows if row is not None]


def _carry_forward(points: list[Point]) -> dict[int, float | None]:
    """The validation loss that was last measured, by step."""
    last, validated = None, {}
    for point in sorted(points, key=lambda point: point.step):
        last = validated[point.step] = last if point.validation_loss is None else point.validation_loss
    return validated


def progress_columns(progress: Progress, *, total_epochs: int | None, cost: float, now: datetime) -> dict[str, Any]:
    """Columns of `training_jobs` for a progress report."""
    metrics = {key: _within(key, progress.metrics.get(key)) for key in _METRIC_KEYS}
    columns: dict[str, Any] = {
        "current_stage": str(progress.stage),
        # Only a settled job may show 100 %: the pages take that for complete.
        "progress": round(min(progress.progress, 99.0), 2),
        "current_step": progress.current_step,
        "current_metrics": {key: value for key, value in metrics.items() if value is not None},
        "current_cost": cost,
    }
    if progress.current_step:
        columns["current_epoch"] = _epoch(progress.current_epoch, total_epochs)
    if progress.total_steps:
        columns["total_steps"] = progress.total_steps
    if progress.eta_seconds is not None and 0 <= progress.eta_seconds < 30 * 86400:
        columns["estimated_completion_at"] = (now + timedelta(seconds=progress.eta_seconds)).isoformat()
    return columns


def waiting_columns(state: LaunchState, *, checked_in: bool, endpoint_has_problem: bool) -> dict[str, Any]:
    """Columns of `training_jobs` for an accepted launch whose trainer has not checked in yet."""
    if checked_in or state not in {LaunchState.QUEUED, LaunchState.RUNNING}:
        return {}
    # A launch that runs has its GPU, even while the endpoint has none for others.
    waits = state is LaunchState.QUEUED and endpoint_has_problem
    return {"current_stage": "waiting_for_gpu" if waits else "queued_on_gpu"}


def final_columns(metrics: FinalMetrics, summary: Summary, points: list[Point]) -> dict[str, Any]:
    """Columns of the job for a run that has succeeded; only the newer queue has columns for the final loss and time."""
    last = points[-1] if points else Point(step=0, epoch=0)
    values = {
        "training_loss": metrics.final_training_loss,
        "validation_loss": metrics.final_validation_loss,
        "learning_rate": last.learning_rate,
        "throughput": metrics.tokens_per_second,
        "gpu_utilization": last.gpu_utilization,
        "reward_margin": metrics.final_reward_margin,
        "reward_accuracy": metrics.final_reward_accuracy,
    }
    within = {key: _within(key, value) for key, value in values.items()}
    seconds = summary.train_seconds or summary.execution_seconds
    columns: dict[str, Any] = {
        "current_metrics": {key: v for key, v in within.items() if v is not None},
        "final_loss": within["training_loss"],
        "training_time_seconds": None if seconds is None else round(seconds),
    }
    if summary.total_steps:
        columns["current_step"] = columns["total_steps"] = summary.total_steps
    if summary.epochs_completed:
        columns["current_epoch"] = math.ceil(summary.epochs_completed)
    return columns


def partial_columns(points: list[Point], *, total_steps: int | None, total_epochs: int | None) -> dict[str, Any]:
    """Columns of `training_jobs` for a run that ended early: how far its curve came."""
    if not points:
        return {}
    last = points[-1]
    within = {key: _within(key, getattr(last, key)) for key in _METRIC_KEYS}
    columns: dict[str, Any] = {
        "current_epoch": _epoch(last.epoch, total_epochs),
        "current_metrics": {key: value for key, value in within.items() if value is not None},
    }
    if total_steps:
        columns |= {"current_step": last.step, "total_steps": total_steps}
    return columns


def _epoch(epoch: float, total_epochs: int | None) -> int:
    """The epoch being trained, from 1 and never beyond the last."""
    return min(max(1, math.ceil(epoch)), total_epochs or sys.maxsize)


def merged(before: Progress | None, after: Progress) -> Progress:
    """The further of two reports, with the points of both: a report that comes late sets nothing back.

    Reports come by two ways, through the launcher and with the trainer's heartbeats, and those hold the newest points
    only. Where both have a point of the same step, the further report's counts.
    """
    if before is None:
        return after
    order = (STAGES.index(after.stage), after.current_step, after.progress)
    is_behind = order < (STAGES.index(before.stage), before.current_step, before.progress)
    further, other = (before, after) if is_behind else (after, before)
    if not other.points:
        return further
    by_step = {point.step: point for points in (other.points, further.points) for point in points}
    points = spread([by_step[step] for step in sorted(by_step)], MAX_POINTS)
    return further.model_copy(update={"points": points})
