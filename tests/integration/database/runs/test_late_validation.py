"""The chart's validation line: late values complete stored points, and settling completes the curve."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from lora_contract.protocol import Point
from lora_worker.runs.rows.report_rows import point_rows
from tests.application.pipeline import Pipeline
from tests.database.rows import Database, Row, outcome, point, report


class Chart:
    """A running run of either queue, and the chart that its page draws."""

    def __init__(self, db: Database, run: Row, pipeline: Pipeline | None) -> None:
        self.db, self.run, self._pipeline = db, run, pipeline

    def send(self, points: list[Row], most: int = 100) -> None:
        sent = {**report(self.run, points), "most_points": most}
        assert self.db.call("record_progress", [sent]) == [
            {"run_id": str(self.run["id"]), "applied": True, "refused": None}
        ]

    def settle(self, points: list[Row], *, whole: bool = True, status: str = "completed") -> None:
        ended = outcome(status, points=points, points_are_whole=whole, most_points=100)
        if status == "completed":
            ended["artifact"]["archive"] = "lora-models/x.tar.gz"
        assert self.db.call("settle_run", self.run["id"], self.run["lease_token"], ended) == status

    def line(self, metric: str = "validation_loss") -> dict[int, float | None]:
        """The values of a line by step; fails where a step is there twice."""
        job_id = UUID(str(self.run["job_id"]))
        if self._pipeline is None:
            rows = self.db.rows(f"select step, {metric} as value from metrics_points where job_id = %s", job_id)
        else:
            rows = [
                {"step": row["step_number"], "value": row["value"]}
                for row in self._pipeline.metrics(job_id)
                if row["metric_id"] == metric
            ]
        assert len({row["step"] for row in rows}) == len(rows)
        return {row["step"]: None if row["value"] is None else float(row["value"])
                for row in sorted(rows, key=lambda row: row["step"]) if row["value"] is not None}  # fmt: skip


@pytest.fixture(params=["training_jobs", "pipeline_training_jobs"])
def chart(request: pytest.FixtureRequest, db: Database) -> Chart:
    if request.param == "training_jobs":
        return Chart(db, db.running_run()[0], None)
    pipeline: Pipeline = request.getfixturevalue("pipeline")
    user = db.user()
    pipeline.queue(user_id=user, dataset_id=db.dataset(user))
    (given,) = db.claim()
    token = "t" * 64
    db.begin(given["run"], token)
    assert db.call("check_in_run", token, "ext", "00000000-0000-0000-0000-000000000001")["may_train"]
    return Chart(db, given["run"], pipeline)


def at(step: int, validation: float | None = None) -> Row:
    return {**point(step), "validation_loss": validation}


def test_late_validation_loss_completes_its_stored_point(chart: Chart) -> None:
    chart.send([at(1), at(2)])
    assert chart.line() == {}
    chart.send([at(1), at(2, 1.5), at(3, 1.5)])
    assert chart.line() == {2: 1.5, 3: 1.5}
    # First carried forward from the last value, later measured.
    chart.send([at(1), at(2, 1.5), at(3, 1.25), at(4, 1.25)])
    assert chart.line() == {2: 1.5, 3: 1.25, 4: 1.25}
    assert chart.line("training_loss") == dict.fromkeys(range(1, 5), 1.5)


def test_settling_stores_the_points_that_no_report_had(chart: Chart) -> None:
    chart.send([at(1), at(2)])
    chart.settle([at(1), at(2, 1.5), at(3, 1.5)])
    assert chart.line() == {2: 1.5, 3: 1.5}
    assert list(chart.line("training_loss")) == [1, 2, 3]


def test_complete_curve_replaces_the_reported_points(chart: Chart) -> None:
    chart.send([at(step) for step in range(1, 60)])
    chart.settle([at(step, 2.0) for step in range(1, 121, 2)])
    assert list(chart.line("training_loss")) == list(range(1, 121, 2))
    assert set(chart.line().values()) == {2.0}


def test_partial_curve_deletes_no_stored_point(chart: Chart) -> None:
    chart.send([at(1), at(2), at(3)])
    chart.settle([at(3, 1.5)], whole=False, status="failed")
    assert (list(chart.line("training_loss")), chart.line()) == ([1, 2, 3], {3: 1.5})


def test_settling_without_points_keeps_the_stored_ones(chart: Chart) -> None:
    chart.send([at(1), at(2, 1.5)])
    chart.settle([])
    assert (list(chart.line("training_loss")), chart.line()) == ([1, 2], {2: 1.5})


def test_stored_points_of_a_job_are_limited(chart: Chart) -> None:
    for first in (1, 50, 90, 1000):
        chart.send([at(step) for step in range(first, first + 60)], most=100)
    assert len(chart.line("training_loss")) == 100


def test_points_of_earlier_attempts_and_other_jobs_are_not_changed(chart: Chart, db: Database) -> None:
    other, _, _ = db.running_run()
    db.call("record_progress", [report(other, [at(2)])])
    chart.send([at(1), at(2)])
    chart.settle([at(1, 1.5), at(2, 1.5)])
    (row,) = db.rows("select * from metrics_points where job_id = %s", other["job_id"])
    assert row["validation_loss"] is None


def test_repeated_points_cost_no_further_reads(chart: Chart, db: Database) -> None:
    chart.send([at(1, 1.5)])
    db.rows("update metrics_points set validation_loss = 9 where job_id = %s", chart.run["job_id"])
    before = chart.line()
    chart.send([at(1, 1.5)])
    assert chart.line() == before


def test_later_attempt_replaces_and_completes_repeated_steps(db: Database) -> None:
    run, _, _ = db.running_run()
    chart = Chart(db, run, None)
    chart.send([at(1), at(2, 3.0), at(3, 3.0)])
    chart.settle([], status="queued")
    db.rows("update training_runs set next_attempt_at = null where id = %s", run["id"])
    (given,) = db.claim()
    db.begin(given["run"], "u" * 64)
    again = Chart(db, given["run"], None)
    db.call("record_launch", given["run"]["id"], given["run"]["lease_token"], "runpod", "again", None)
    again.send([at(2), at(3)])
    assert again.line() == {}
    again.send([at(2, 1.0), at(3, 1.0)])
    assert again.line() == {2: 1.0, 3: 1.0}
    again.settle([at(1), at(2, 1.0), at(3, 1.0), at(4, 1.0)])
    assert (list(again.line("training_loss")), again.line()) == ([1, 2, 3, 4], {2: 1.0, 3: 1.0, 4: 1.0})


# ── rows as the worker makes them ───────────────────────────────────────────────────────────────────


def curve(total: int, every: int, reached: int, *, late: bool) -> list[Point]:
    """The curve up to a step; its last evaluation may still be running."""
    last = reached - reached % every
    known: dict[int, Any] = {step: 3.0 - step / total for step in range(every, last + 1, every)}
    if late:
        known.pop(last, None)
    return [
        Point(step=step, epoch=1, training_loss=2.0, learning_rate=1e-4, validation_loss=known.get(step))
        for step in range(1, reached + 1)
    ]


@pytest.mark.parametrize(("total", "every"), [(9, 1), (9, 2), (90, 10), (430, 43), (1000, 100)])
def test_chart_has_every_measured_value_and_no_isolated_one(chart: Chart, total: int, every: int) -> None:
    """The page does not draw a value between two nulls, so each value is carried forward."""
    for reached in range(1, total + 1, max(total // 12, 1)):
        for late in (True, False):
            points = curve(total, every, reached, late=late)
            chart.send(point_rows(points, total_steps=total, limit=100))
    whole = curve(total, every, total, late=False)
    chart.settle(point_rows(whole, total_steps=total, limit=100))
    line = chart.line()
    for step in range(every, total + 1, every):
        assert line[step] == pytest.approx(3.0 - step / total, abs=1e-6)
    steps = list(chart.line("training_loss"))
    assert len(steps) <= 100
    assert list(line) == [step for step in steps if step >= every]
