"""Erasing a user removes their rows and nobody else's, keeps the sums of costs, and waits for their GPUs."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from tests.application.pipeline import Pipeline
from tests.database.rows import Database, Row, notice

TABLES = ("datasets", "training_jobs", "metrics_points", "model_artifacts", "cost_records", "notifications",
          "training_runs", "training_launches", "training_budgets", "training_waiting_users")  # fmt: skip


def finished(db: Database, seconds: float = 1800) -> Row:
    """A completed run with rows in every table."""
    run, _, _ = db.running_run()
    db.rows("update training_runs set base_model = 'some/base' where id = %s", run["id"])
    db.rows("insert into training_budgets (user_id, usd_per_day) values (%s, 5)", run["user_id"])
    db.rows(
        "insert into metrics_points (job_id, epoch, step, training_loss, learning_rate) values (%s, 1, 1, 1, 0)",
        run["job_id"],
    )
    db.settle(run, gpu_seconds=seconds, notices=[notice("job_completed", run["job_id"])])
    return run


def erase(db: Database, user: UUID) -> Any:
    return db.call("erase_training_user", user)


def counts(db: Database) -> dict[str, int]:
    return {table: db.row(f"select count(*) from {table}")["count"] for table in TABLES}


def test_nothing_of_the_user_is_left_and_others_keep_all(db: Database) -> None:
    finished(db)
    before = counts(db)
    run = finished(db)
    assert all(now > then for then, now in zip(before.values(), counts(db).values(), strict=True))
    answer = erase(db, run["user_id"])
    assert answer["erased"] is True
    assert answer["rows"]["training_jobs"] == 1
    assert counts(db) == before
    assert erase(db, run["user_id"]) == {"erased": True, "reason": None, "rows": {}}


def test_costs_stay_as_sums_without_the_user(db: Database) -> None:
    runs = [finished(db), finished(db)]
    call = "select training_costs('-infinity', 'infinity', %s) as answer"
    before = {by: db.row(call, by)["answer"] for by in ("day", "model")}
    db.call("set_training_budget", None, None)
    spent = db.call("training_budget_state")["day"]["spent"]
    for run in runs:
        erase(db, run["user_id"])
    assert {by: db.row(call, by)["answer"] for by in ("day", "model")} == before
    (row,) = db.row(call, "user")["answer"]
    assert (row["key"], row["jobs"]) == ("erased users", 2)
    assert db.call("training_budget_state")["day"]["spent"] == spent


def test_a_user_with_a_gpu_is_not_erased_before_it_is_stopped(db: Database) -> None:
    run, _, _ = db.running_run()
    before = db.snapshot()
    assert erase(db, run["user_id"])["reason"] == "runs are still being stopped"
    assert db.snapshot() == before
    assert db.call("stop_user_training", run["user_id"]) == 1
    assert db.call("stop_user_training", run["user_id"]) == 0
    assert db.job(run["job_id"])["status"] == "cancelled"
    # The run has ended, but nobody has seen the end of its launch.
    db.settle(run, "cancelled", launcher_ended=False)
    db.rows("update training_launches set ended_at = null")
    assert db.call("training_user_state", run["user_id"])["busy"] == 1
    assert erase(db, run["user_id"])["erased"] is False
    db.call("close_launches", [{"external_job_id": run["external_job_id"], "gpu_seconds": 5}])
    assert erase(db, run["user_id"])["erased"] is True


def test_jobs_of_both_queues_are_stopped_and_erased(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    (job,) = db.jobs(user=user)
    pipeline.queue(user_id=user, dataset_id=db.dataset(user))
    assert db.call("training_user_state", user)["jobs"] == 2
    assert db.call("stop_user_training", user) == 2
    assert db.job(job)["status"] == "cancelled"
    assert erase(db, user)["rows"]["pipeline_training_jobs"] == 1


def test_job_of_the_newer_queue_belongs_to_its_maker(db: Database, pipeline: Pipeline) -> None:
    """Where a job there has no user, its creator is who it is trained, billed and erased for."""
    user, other = db.user(), db.user()
    job = pipeline.queue(created_by=user, dataset_id=db.dataset(user))
    kept = pipeline.queue(created_by=other, dataset_id=db.dataset(other))
    assert db.call("training_user_state", user)["jobs"] == 1
    assert db.call("stop_user_training", user) == 1
    assert pipeline.job(job)["status"] == "cancelled"
    assert erase(db, user)["rows"]["pipeline_training_jobs"] == 1
    assert pipeline.job(kept)["status"] == "pending"


def test_a_foreign_reference_is_reported_and_changes_nothing(db: Database) -> None:
    run = finished(db)
    stranger = db.user()
    dataset = db.job(run["job_id"])["dataset_id"]
    db.rows(
        "insert into training_jobs (user_id, dataset_id, preset_id, hyperparameters, gpu_config, total_epochs,"
        " estimated_total_cost, status) values (%s, %s, 'x', '{}', '{}', 1, 1, 'failed')", stranger, dataset,
    )  # fmt: skip
    before = counts(db)
    answer = erase(db, run["user_id"])
    assert answer["erased"] is False
    assert "refer to them: delete these first" in answer["reason"]
    assert counts(db) == before
    assert db.rows("select 1 from training_erased_costs") == []


@pytest.mark.parametrize("bucket", ["lora-models", "models-of-ours"])
def test_objects_of_a_database_without_storage_are_none(db: Database, bucket: str) -> None:
    assert db.call("training_user_objects", db.user(), bucket, 10) == []


def test_deleting_an_account_gives_no_new_budget(db: Database) -> None:
    """The application's bills go with the account in Auth; what was spent today stays spent."""
    run = finished(db)
    before = db.call("training_budget_state")["day"]["spent"]
    assert float(before) > 0
    db.rows("delete from auth.users where id = %s", run["user_id"])
    assert db.rows("select 1 from cost_records") == []
    assert db.call("training_budget_state")["day"]["spent"] == before
    (kept,) = db.rows("select jobs, runs, usd from training_erased_costs")
    assert (kept["jobs"], kept["runs"]) == (1, 1)
    assert float(kept["usd"]) == float(before)
