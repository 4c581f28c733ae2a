"""Points are stored once, and progress and stages never go backward."""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.database.rows import Database, report


@pytest.mark.fault(17)
def test_points_are_stored_once_and_replaced_by_a_later_attempt(db: Database) -> None:
    run, _, _ = db.running_run()
    points = [{"step": s, "epoch": 1, "training_loss": 9 - s, "learning_rate": 0.1} for s in (1, 2, 3)]
    for _ in range(2):
        db.call("record_progress", [report(run, points, current_step=3)])
    steps = db.rows("select step from metrics_points where job_id = %s order by timestamp, step", run["job_id"])
    assert [row["step"] for row in steps] == [1, 2, 3]
    db.settle(run, "queued")
    db.rows("update training_runs set next_attempt_at = now()")
    (again,) = db.claim()
    resumed = [{"step": s, "epoch": 1, "training_loss": 0.5, "learning_rate": 0.1} for s in (3, 4)]
    db.call("record_progress", [report(again["run"], resumed, current_step=4)])
    rows = db.rows("select step, training_loss from metrics_points order by step")
    assert [(row["step"], float(row["training_loss"])) for row in rows] == [(1, 8), (2, 7), (3, 0.5), (4, 0.5)]


def test_report_from_before_the_check_in_does_not_reset_the_stage(db: Database) -> None:
    run, token = db.launched_run()
    db.call("record_progress", [report(run, current_stage="waiting_for_gpu")])
    assert db.job(run["job_id"])["current_stage"] == "waiting_for_gpu"
    assert db.call("check_in_run", token, run["external_job_id"], str(uuid4()))["may_train"]
    for late in ("waiting_for_gpu", "queued_on_gpu"):
        db.call("record_progress", [report(run, current_stage=late)])
        assert db.job(run["job_id"])["current_stage"] == "setup"
    db.call("record_progress", [report(run, current_stage="training")])
    assert db.job(run["job_id"])["current_stage"] == "training"


def test_progress_never_decreases(db: Database) -> None:
    run, _, _ = db.running_run()
    db.call("record_progress", [report(run, progress=60, current_step=30, current_epoch=2)])
    db.call("record_progress", [report(run, progress=40, current_step=20, current_epoch=1)])
    job = db.job(run["job_id"])
    assert (job["progress"], job["current_step"], job["current_epoch"]) == (60, 30, 2)
