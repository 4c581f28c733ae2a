"""What a training has brought is kept with its run; the newer queue's metrics page has it once, beside the curve."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from tests.application.pipeline import Pipeline
from tests.database.rows import Database, Row, point, report

RAW = {"conversations": 34, "low": 0.55, "high": 0.83, "confidence": 0.95}
FIGURES: list[Row] = [
    {"id": "tuned_validation_loss", "name": "Held-out loss", "value": 1.62, "unit": "nats/token", "raw": {"tokens": 9}},
    {"id": "held_out_gain", "name": "Held-out gain", "value": 0.69, "unit": "nats/token", "raw": RAW},
    {"id": "tuned_token_accuracy", "name": "Share", "value": 0.6, "unit": None, "raw": {}},
]
MEASURED = {"evaluation": {"guard_passed": True}, "application": None, "serving_name": "adapter-0123abcd"}


def settle(db: Database, run: Row, status: str = "completed", **more: Any) -> str | None:
    return db.settle(run, status, measured=MEASURED, figures=FIGURES, **more)


def figures_of(pipeline: Pipeline, job_id: Any) -> list[Row]:
    return [row for row in pipeline.metrics(job_id) if row["measurement_method"] == "base_comparison"]


def test_newer_queue_gets_each_figure_once_beside_its_curve(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    job_id = pipeline.queue(user_id=user, dataset_id=db.dataset(user))
    (given,) = db.claim()
    run = given["run"]
    db.call("record_progress", [report(run, [point(1), point(2)])])
    db.rows(
        "insert into pipeline_training_metrics (job_id, metric_id, metric_name, metric_level, value)"
        " values (%s, 'held_out_gain', 'Of the application', 'domain', 7)", job_id,
    )  # fmt: skip
    # The manifest's curve replaces the points of reports, and touches no figure.
    assert settle(db, run, points=[point(1), point(3)], points_are_whole=True) == "completed"
    before = pipeline.metrics(job_id)
    assert [row["metric_id"] for row in figures_of(pipeline, job_id)] == [figure["id"] for figure in FIGURES]
    for row, figure in zip(figures_of(pipeline, job_id), FIGURES, strict=True):
        assert (row["metric_name"], row["value"], row["unit"], row["raw_data"]) == (
            figure["name"], figure["value"], figure["unit"], figure["raw"],
        )  # fmt: skip
        assert (row["metric_level"], row["measurement_version"], row["step_number"]) == ("universal", "1", None)
        assert row["measured_at"] is not None
    assert {row["step_number"] for row in before if row["measurement_method"] == "training_log"} == {1, 3}
    # An answer that was lost is asked for again.
    assert settle(db, run) == "completed"
    assert pipeline.metrics(job_id) == before
    assert [row["value"] for row in before if row["metric_level"] == "domain"] == [7]
    assert db.call("training_job_details", job_id)["measured"] == MEASURED


def test_figures_of_an_earlier_run_are_replaced_and_no_curve_removes_them(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    job_id = pipeline.queue(user_id=user, dataset_id=db.dataset(user))
    (given,) = db.claim()
    run = given["run"]
    for value in (1.0, 2.0):
        db.call("training_note_measured", run["id"], MEASURED, [{**FIGURES[0], "value": value}])
    db.call("record_progress", [report(run, [point(1)])])
    db.call("training_write_points", "pipeline_training_jobs", job_id, [point(1)], True)
    assert [row["value"] for row in figures_of(pipeline, job_id)] == [2.0]


def test_older_queue_keeps_it_with_the_run_alone(db: Database, pipeline: Pipeline) -> None:
    run, _, _ = db.running_run()
    assert settle(db, run) == "completed"
    assert db.run(run["id"])["measured"] == MEASURED
    assert db.call("training_job_details", run["job_id"])["measured"] == MEASURED
    assert db.rows("select 1 from pipeline_training_metrics") == []


def test_nothing_is_noted_of_a_run_that_completed_no_job(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    for status in ("failed", "cancelled", "queued"):
        job_id = pipeline.queue(user_id=user, dataset_id=db.dataset(user))
        (given,) = db.claim()
        assert settle(db, given["run"], status) == status
        assert figures_of(pipeline, job_id) == []
        assert db.run(given["run"]["id"])["measured"] is None
    foreign = pipeline.queue(user_id=user, dataset_id=db.dataset(user))
    (given,) = db.claim()
    db.rows("update pipeline_training_jobs set status = 'completed' where id = %s", foreign)
    assert settle(db, given["run"]) == "completed"
    assert figures_of(pipeline, foreign) == []
    late = pipeline.queue(user_id=user, dataset_id=db.dataset(user))
    (given,) = db.claim()
    assert settle(db, {**given["run"], "lease_token": str(uuid4())}) is None
    assert figures_of(pipeline, late) == []


def test_worker_that_measures_nothing_settles_as_before(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    job_id = pipeline.queue(user_id=user, dataset_id=db.dataset(user))
    (given,) = db.claim()
    assert db.settle(given["run"]) == "completed"
    assert db.call("training_job_details", job_id)["measured"] is None
