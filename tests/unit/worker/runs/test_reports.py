"""Progress rows fit their columns, whatever the trainer reports."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_contract.curve import thin_points
from lora_contract.protocol import MAX_POINTS, Point, Progress, Stage
from lora_worker.launchers.base import LaunchState
from lora_worker.runs.rows.report_rows import (
    merged,
    partial_columns,
    point_row,
    point_rows,
    progress_columns,
    waiting_columns,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ANY_FLOAT = st.one_of(st.none(), st.floats())


@given(loss=ANY_FLOAT, rate=ANY_FLOAT, norm=ANY_FLOAT, throughput=ANY_FLOAT, use=ANY_FLOAT)
@pytest.mark.fault(19)
def test_point_that_does_not_fit_its_columns_is_left_out(
    loss: float | None, rate: float | None, norm: float | None, throughput: float | None, use: float | None
) -> None:
    row = point_row(Point(step=1, epoch=0.2, training_loss=loss, learning_rate=rate, gradient_norm=norm,
                          throughput=throughput, gpu_utilization=use))  # fmt: skip
    if row is None:
        assert loss is None or loss != loss or abs(loss) == float("inf")
        return
    assert abs(row["training_loss"]) < 10**4
    assert abs(row["learning_rate"]) < 100
    assert row["epoch"] == 1
    for key, limit in (("gradient_norm", 10**4), ("throughput", 10**8), ("gpu_utilization", 1000)):
        assert row[key] is None or abs(row[key]) < limit


@given(total=st.integers(1, 5000), limit=st.integers(10, 100), logged=st.integers(1, 7))
def test_thinned_curve_keeps_first_and_last_within_its_limit(total: int, limit: int, logged: int) -> None:
    points = [
        Point(step=s, epoch=1, training_loss=1) for s in range(1, total + 1) if s % logged == 0 or s in {1, total}
    ]
    rows = point_rows(points, total_steps=total, limit=limit)
    steps = [row["step"] for row in rows]
    assert len(steps) <= limit
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (1, total)


@given(total=st.integers(1, 3000), reached=st.integers(1, 3000))
def test_kept_point_stays_as_the_curve_grows(total: int, reached: int) -> None:
    points = [Point(step=s, epoch=1, training_loss=1) for s in range(1, total + 1)]
    early = {p.step for p in thin_points(points[: min(reached, total)], total_steps=total)}
    assert early <= {p.step for p in thin_points(points, total_steps=total)}


def progress(**more: object) -> Progress:
    return Progress.model_validate({"run_id": "r", "stage": "training", "progress": 50, **more})


def test_progress_columns_are_numbers_below_100_percent() -> None:
    columns = progress_columns(
        progress(progress=100, current_step=5, current_epoch=1.2, total_steps=10, eta_seconds=60,
                 metrics={"training_loss": float("inf"), "throughput": 12.5, "strange": 1.0}),
        total_epochs=2, cost=1.5, now=NOW,
    )  # fmt: skip
    assert columns["progress"] == 99
    assert columns["current_metrics"] == {"throughput": 12.5}
    assert columns["current_epoch"] == 2
    assert columns["estimated_completion_at"] == "2026-01-01T00:01:00+00:00"


@pytest.mark.parametrize("eta", [None, float("nan"), -5.0, 1e12])
def test_impossible_time_estimate_is_left_out(eta: float | None) -> None:
    assert "estimated_completion_at" not in progress_columns(progress(eta_seconds=eta), total_epochs=1, cost=0, now=NOW)


def test_late_report_does_not_lower_progress() -> None:
    ahead, behind = progress(current_step=9), progress(current_step=3)
    assert merged(ahead, behind) is ahead
    assert merged(behind, ahead) is ahead
    assert merged(ahead, progress(stage=Stage.SETUP, progress=1)) is ahead


def points_of(steps: range, loss: float) -> list[Point]:
    return [Point(step=step, epoch=1, training_loss=loss) for step in steps]


def test_points_of_two_reports_are_merged_by_step() -> None:
    whole = progress(current_step=9, points=points_of(range(1, 10), 2.0))
    tail = progress(current_step=12, points=points_of(range(8, 13), 1.0))
    for both in (merged(whole, tail), merged(tail, whole)):
        assert both.current_step == 12
        assert [(point.step, point.training_loss) for point in both.points] == [
            *((step, 2.0) for step in range(1, 8)),
            *((step, 1.0) for step in range(8, 13)),
        ]


def test_merged_points_stay_bounded_whatever_is_reported() -> None:
    known = None
    for start in range(0, 40_000, 5_000):
        known = merged(known, progress(current_step=start, points=points_of(range(start, start + 5_000), 1.0)))
        assert len(known.points) <= MAX_POINTS


@pytest.mark.fault(18)
def test_zero_is_stored_as_a_value() -> None:
    row = point_row(Point(step=1, epoch=0, training_loss=0.0, validation_loss=0.0, learning_rate=0.0, throughput=0.0))
    assert row is not None
    assert {row[key] for key in ("training_loss", "validation_loss", "learning_rate", "throughput")} == {0.0}
    columns = progress_columns(progress(metrics={"training_loss": 0.0}), total_epochs=1, cost=0.0, now=NOW)
    assert (columns["current_metrics"], columns["current_cost"]) == ({"training_loss": 0.0}, 0.0)


def test_early_end_reports_the_last_step_of_the_curve() -> None:
    points = [Point(step=s, epoch=s / 10, training_loss=1.0, learning_rate=1e-4) for s in (1, 12)]
    columns = partial_columns(points, total_steps=20, total_epochs=2)
    assert (columns["current_step"], columns["total_steps"], columns["current_epoch"]) == (12, 20, 2)
    assert columns["current_metrics"] == {"training_loss": 1.0, "learning_rate": 1e-4}
    # Without the trainer's count, step 12 might exceed the client's guess of the total.
    assert "current_step" not in partial_columns(points, total_steps=None, total_epochs=2)
    assert partial_columns([], total_steps=20, total_epochs=2) == {}


@pytest.mark.parametrize(
    ("state", "checked_in", "has_problem", "stage"),
    [
        (LaunchState.QUEUED, False, False, "queued_on_gpu"),
        (LaunchState.QUEUED, False, True, "waiting_for_gpu"),
        (LaunchState.RUNNING, False, True, "queued_on_gpu"),
        (LaunchState.UNKNOWN, False, True, None),
        (LaunchState.QUEUED, True, True, None),
        (LaunchState.RUNNING, True, False, None),
    ],
)
def test_stage_shows_gpu_availability_until_the_check_in(
    state: LaunchState, checked_in: bool, has_problem: bool, stage: str | None
) -> None:
    expected = {"current_stage": stage} if stage else {}
    assert waiting_columns(state, checked_in=checked_in, endpoint_has_problem=has_problem) == expected
