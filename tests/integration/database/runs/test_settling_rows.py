"""Settling closes a run in one transaction, and the seconds of every launch are billed in one record."""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest

from tests.database.rows import Database, outcome, report


def test_cancelled_job_stays_cancelled_and_is_billed(db: Database) -> None:
    run, _, _ = db.running_run()
    db.rows("update training_jobs set status = 'cancelled' where id = %s", run["job_id"])
    db.call("record_progress", [report(run, [{"step": 1, "epoch": 1, "training_loss": 1}], progress=99)])
    assert db.settle(run, "completed") == "cancelled"
    job = db.job(run["job_id"])
    assert (job["status"], job["progress"], job["artifact_id"]) == ("cancelled", 0, None)
    assert job["completed_at"] is not None
    assert db.rows("select * from metrics_points") == []
    assert db.rows("select * from model_artifacts") == []
    assert [float(row["amount"]) for row in db.rows("select * from cost_records")] == [0.42]
    assert float(job["final_cost"]) == 0.42


@pytest.mark.fault(12)
def test_settling_is_atomic(db: Database) -> None:
    run, _, _ = db.running_run()
    broken = outcome("completed")
    broken["artifact"]["quality_metrics"] = None
    broken["artifact"].pop("quality_metrics")
    before = db.snapshot()
    with pytest.raises(psycopg.Error):
        db.call("settle_run", run["id"], run["lease_token"], broken)
    assert db.snapshot() == before
    assert db.settle(run) == "completed"
    job = db.job(run["job_id"])
    assert job["artifact_id"] == run["id"]
    assert db.row("select count(*) from cost_records")["count"] == 1


def test_superseded_launchs_seconds_join_the_runs_cost_record(db: Database) -> None:
    run, token, _ = db.running_run()
    db.call("check_in_run", token, "loser", str(uuid4()))
    db.settle(run)
    assert db.call("close_launches", [{"external_job_id": "loser", "gpu_seconds": 36}]) == 1
    assert db.call("close_launches", [{"external_job_id": "loser", "gpu_seconds": 36}]) == 0
    (cost,) = db.rows("select * from cost_records")
    assert cost["details"]["gpu_seconds"] == 396
    assert float(cost["amount"]) == 0.46
    assert db.call("stray_launches", 10) == []
    job = db.job(run["job_id"])
    assert (job["final_cost"], job["current_cost"]) == (cost["amount"], cost["amount"])
    assert job["status"] == "completed"


def test_superseded_launchs_seconds_never_lower_the_current_cost(db: Database) -> None:
    run, token, _ = db.running_run()
    db.call("check_in_run", token, "loser", str(uuid4()))
    db.settle(run, "queued")
    db.rows("update training_jobs set current_cost = 5 where id = %s", run["job_id"])
    assert db.call("close_launches", [{"external_job_id": "loser", "gpu_seconds": 36}]) == 1
    job = db.job(run["job_id"])
    assert (job["current_cost"], job["final_cost"], job["status"]) == (5, None, "queued")
