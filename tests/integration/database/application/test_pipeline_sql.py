"""The newer queue in the database's functions: claimed, written and settled like the older one, in its own columns."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.application.pipeline import OURS, Pipeline
from tests.database.rows import Database, Row, notice, outcome, point, report

ARCHIVED = {"archive": "lora-models/adapters/x.tar.gz"}


def queued(db: Database, pipeline: Pipeline, **columns: Any) -> UUID:
    user = db.user()
    return pipeline.queue(**{"user_id": user, "dataset_id": db.dataset(user), **columns})


def running(db: Database, run: Row) -> tuple[str, str]:
    """Launch the run and let its trainer check in; its token and execution."""
    token, execution = uuid4().hex * 2, str(uuid4())
    assert db.begin(run, token)["may_launch"]
    assert db.call("record_launch", run["id"], run["lease_token"], "runpod", f"ext-{run['id']}")
    assert db.call("check_in_run", token, f"ext-{run['id']}", execution)["may_train"]
    return token, execution


def settled(db: Database, run: Row, status: str, **more: Any) -> str | None:
    made = outcome(status, **more)
    if status == "completed":
        made["artifact"] |= ARCHIVED
    return db.call("settle_run", run["id"], run["lease_token"], made)


def test_claimed_job_has_the_column_names_of_the_older_queue(db: Database, pipeline: Pipeline) -> None:
    job_id = queued(db, pipeline, learning_rate=5e-5, batch_size=2, gpu_type="NVIDIA A40")
    (given,) = db.claim()
    job = given["job"]
    assert given["run"]["queue"] == "pipeline_training_jobs"
    assert (job["id"], job["status"], job["total_epochs"]) == (str(job_id), "initializing", 2)
    assert job["hyperparameters"] == {
        "learning_rate": 5e-5, "batch_size": 2, "epochs": 2, "rank": 16, "alpha": 32, "dropout": 0.05,
    }  # fmt: skip
    assert job["gpu_config"] == {"type": "NVIDIA A40", "count": 1}
    assert given["dataset"]["id"] == str(pipeline.job(job_id)["dataset_id"])
    assert pipeline.job(job_id)["status"] == "initializing"


def test_oldest_job_of_either_queue_is_claimed_first(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    old, new = db.jobs(2, user)
    between = queued(db, pipeline)
    db.rows("update training_jobs set created_at = now() + interval '1 hour' where id = %s", new)
    assert [db.claim()[0]["job"]["id"] for _ in range(3)] == [str(old), str(between), str(new)]
    assert db.claim() == []


def test_one_claim_serves_both_queues_within_a_users_limit(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    db.jobs(2, user)
    dataset = db.dataset(user)
    for _ in range(2):
        pipeline.queue(user_id=user, dataset_id=dataset)
    claimed = db.claim(max_jobs=9, max_per_user=3)
    assert sorted(a["run"]["queue"] for a in claimed) == ["pipeline_training_jobs", "training_jobs", "training_jobs"]
    assert db.claim(max_jobs=9, max_per_user=3) == []
    assert len(db.claim(max_jobs=9)) == 1


@pytest.mark.parametrize("status", ["queued", "initializing", "running", "completed", "failed", "cancelled"])
def test_jobs_of_the_other_dispatcher_are_not_claimed(db: Database, pipeline: Pipeline, status: str) -> None:
    job_id = queued(db, pipeline, status=status)
    assert db.claim() == []
    assert pipeline.history(job_id) == []


def test_job_without_user_and_maker_fails(db: Database, pipeline: Pipeline) -> None:
    maker = db.user()
    nobodys = pipeline.queue(dataset_id=db.dataset(maker))
    makers = pipeline.queue(dataset_id=db.dataset(maker), created_by=maker)
    (given,) = db.claim(max_jobs=9)
    assert (given["job"]["id"], given["job"]["user_id"], given["run"]["user_id"]) == (
        str(makers), str(maker), str(maker),
    )  # fmt: skip
    failed = pipeline.job(nobodys)
    assert failed["status"] == "failed"
    assert failed["completed_at"] is not None
    assert "belongs to no user" in failed["error_message"]


def test_pipeline_table_without_the_later_columns_is_served(db: Database, pipeline: Pipeline) -> None:
    for column in ("workbase_id", "hf_adapter_path", "deployment_log", "adapter_status", "created_by", "updated_by"):
        db.rows(f"alter table pipeline_training_jobs drop column {column}")
    job_id = queued(db, pipeline)
    (given,) = db.claim()
    running(db, given["run"])
    assert settled(db, given["run"], "completed") == "completed"
    assert pipeline.job(job_id)["status"] == "completed"


def test_job_that_names_only_a_file_gets_its_dataset(db: Database, pipeline: Pipeline) -> None:
    user, stranger = db.user(), db.user()
    own, foreign = db.dataset(user), db.dataset(stranger)
    paths = {
        dataset: db.row("select storage_path from datasets where id = %s", dataset)["storage_path"]
        for dataset in (own, foreign)
    }
    of_own = pipeline.queue(user_id=user, dataset_file_path=paths[own])
    of_foreign = pipeline.queue(user_id=user, dataset_file_path=paths[foreign], dataset_name="Yaks")
    of_nothing = pipeline.queue(user_id=user)
    given = {a["job"]["id"]: a["dataset"] for a in db.claim(max_jobs=9)}
    assert given[str(of_own)]["id"] == str(own)
    assert given[str(of_own)]["storage_bucket"] == "lora-datasets"
    # The path of another user's dataset does not give access to it: files in training-files belong to all users.
    assert (given[str(of_foreign)]["storage_bucket"], given[str(of_foreign)]["name"]) == ("training-files", "Yaks")
    assert given[str(of_nothing)] is None


def test_each_step_of_a_run_maps_to_a_pipeline_state(db: Database, pipeline: Pipeline) -> None:
    job_id = queued(db, pipeline)
    (given,) = db.claim()
    run = given["run"]
    running(db, run)
    metrics = {"training_loss": 1.25, "learning_rate": 1e-4, "throughput": 900.0, "gpu_utilization": 80}
    columns = {"progress": 45.6, "current_step": 3, "current_epoch": 1, "total_steps": 20, "current_cost": 0.07}
    db.call("record_progress", [report(run, [point(1)], current_metrics=metrics, **columns)])
    db.call("record_progress", [report(run, [point(1)], progress=45.2, current_step=2)])
    assert [(row["status"], row["progress"]) for row in pipeline.history(job_id)] == [
        ("initializing", 0), ("initializing", 0), ("running", 0), ("running", 46), ("running", 46),
    ]  # fmt: skip
    job = pipeline.job(job_id)
    assert type(job["progress"]) is int
    assert (job["current_loss"], job["current_learning_rate"], job["tokens_per_second"]) == (1.25, 1e-4, 900)
    assert (job["current_step"], job["current_epoch"], job["total_steps"]) == (3, 1, 20)
    assert float(job["actual_cost"]) == 0.07
    assert job["runpod_job_id"] == f"ext-{run['id']}"
    assert job["started_at"] is not None


@pytest.mark.fault(22)
def test_completed_and_archive_path_are_one_last_update(db: Database, pipeline: Pipeline) -> None:
    """The application deploys the adapter at each update of a completed row: a second one would deploy it twice."""
    job_id = queued(db, pipeline)
    before = pipeline.job(job_id)
    (given,) = db.claim()
    run = given["run"]
    token, execution = running(db, run)
    job = {"final_loss": 0.5, "training_time_seconds": 90, "total_steps": 20, "current_step": 20}
    assert settled(db, run, "completed", job=job, points=[point(20)]) == "completed"
    after = pipeline.job(job_id)
    assert (after["status"], after["progress"], after["adapter_file_path"]) == ("completed", 100, ARCHIVED["archive"])
    assert (after["final_loss"], after["training_time_seconds"]) == (0.5, 90)
    assert float(after["actual_cost"]) == 0.42
    assert after["completed_at"] is not None
    assert after["updated_at"] > before["updated_at"]
    updates = len(pipeline.history(job_id))
    assert pipeline.webhook_calls(job_id) == 1
    # Late calls change nothing.
    db.call("record_progress", [report(run, [point(1)], progress=99)])
    assert db.call("check_in_run", token, f"ext-{run['id']}", execution)["reason"] == "ended"
    assert settled(db, run, "failed") == "completed"
    assert db.call("cancel_training_job", job_id) is False
    db.call("training_write_job", "pipeline_training_jobs", job_id, {"status": "running"})
    assert len(pipeline.history(job_id)) == updates
    assert pipeline.webhook_calls(job_id) == 1


def test_columns_of_other_writers_are_never_written(db: Database, pipeline: Pipeline) -> None:
    theirs = {"hf_adapter_path": "org/a", "adapter_status": "superseded", "workbase_id": uuid4(),
              "adapter_download_url": "u", "runpod_endpoint_id": "e"}  # fmt: skip
    jobs = [queued(db, pipeline, **theirs) for _ in range(4)]
    before = {job_id: pipeline.job(job_id) for job_id in jobs}
    for given, status in zip(db.claim(max_jobs=4), ["completed", "failed", "cancelled", "queued"], strict=True):
        running(db, given["run"])
        db.call("record_progress", [report(given["run"], [point(1)], progress=50, current_stage="training")])
        assert settled(db, given["run"], status) == status
    for job_id in jobs:
        after = pipeline.job(job_id)
        assert {name for name in after if after[name] != before[job_id][name]} <= OURS


def test_retry_waits_as_pending_with_the_attempts_values_cleared(db: Database, pipeline: Pipeline) -> None:
    job_id = queued(db, pipeline)
    (given,) = db.claim()
    running(db, given["run"])
    db.call("record_progress", [report(given["run"], [point(1), point(2)], progress=50, current_step=2)])
    assert settled(db, given["run"], "queued") == "queued"
    job = pipeline.job(job_id)
    assert (job["status"], job["progress"], job["current_step"], job["runpod_job_id"]) == ("pending", 0, 0, None)
    assert job["completed_at"] is job["error_message"] is None
    assert db.claim() == []
    assert db.call("queue_health")["waiting"][0]["waits_for"].startswith("retry at ")
    db.rows("update training_runs set next_attempt_at = now()")
    (again,) = db.claim()
    assert (again["run"]["attempt"], again["run"]["transient_failures"]) == (2, 1)
    assert again["run"]["spent_cost"] == 0.42
    running(db, again["run"])
    assert settled(db, again["run"], "completed") == "completed"
    assert float(pipeline.job(job_id)["actual_cost"]) == 0.84


@pytest.mark.fault(17)
def test_metrics_are_stored_once_and_replaced_by_a_later_attempt(db: Database, pipeline: Pipeline) -> None:
    job_id = queued(db, pipeline)
    (given,) = db.claim()
    running(db, given["run"])
    rows = [{**point(step), "validation_loss": 2.0 if step == 3 else None} for step in (1, 2, 3)]
    for _ in range(2):
        db.call("record_progress", [report(given["run"], rows)])
    stored = {(row["step_number"], row["metric_id"]) for row in pipeline.metrics(job_id)}
    assert len(pipeline.metrics(job_id)) == len(stored) == 7
    assert stored == {(3, "validation_loss"), *((s, m) for s in (1, 2, 3) for m in ("training_loss", "learning_rate"))}
    assert {row["metric_level"] for row in pipeline.metrics(job_id)} == {"universal"}
    db.rows(
        "insert into pipeline_training_metrics (job_id, metric_id, metric_name, metric_level, value, step_number)"
        " values (%s, 'training_loss', 'An evaluation', 'domain', 7, 9)", job_id,
    )  # fmt: skip
    settled(db, given["run"], "queued", retry_after_seconds=0)
    (again,) = db.claim()
    resumed = [{**point(step), "training_loss": 0.5} for step in (3, 4)]
    db.call("record_progress", [report(again["run"], resumed)])
    losses = [row for row in pipeline.metrics(job_id) if row["metric_id"] == "training_loss"]
    assert sorted((row["step_number"], row["value"]) for row in losses) == [
        (1, 1.5),
        (2, 1.5),
        (3, 0.5),
        (4, 0.5),
        (9, 7),
    ]


@pytest.mark.parametrize("way", ["the application's update", "the function"])
def test_cancelled_pipeline_job_stays_cancelled_and_is_billed(db: Database, pipeline: Pipeline, way: str) -> None:
    job_id = queued(db, pipeline)
    (given,) = db.claim()
    run = given["run"]
    token, execution = running(db, run)
    if way == "the function":
        assert db.call("cancel_training_job", job_id) is True
    else:
        pipeline.cancel(job_id)
    lease = [{"run_id": run["id"], "lease_token": run["lease_token"]}]
    (news,) = db.call("renew_training_runs", lease, 60)
    assert news["cancel_requested"] is True
    assert db.call("check_in_run", token, f"ext-{run['id']}", execution)["reason"] == "cancelled"
    db.call("record_progress", [report(run, [point(1)], progress=99)])
    assert settled(db, run, "completed") == "cancelled"
    job = pipeline.job(job_id)
    assert (job["status"], job["progress"], job["adapter_file_path"]) == ("cancelled", 0, None)
    assert float(job["actual_cost"]) == 0.42
    assert pipeline.metrics(job_id) == []
    assert pipeline.webhook_calls(job_id) == 0


def test_only_the_owner_may_cancel_a_pipeline_job(db: Database, pipeline: Pipeline) -> None:
    job_id, stranger = queued(db, pipeline), db.user()
    owner = pipeline.job(job_id)["user_id"]
    for user, may in ((stranger, False), (owner, True)):
        with db.connection.transaction():
            db.rows("set local role authenticated")
            db.rows("select set_config('request.jwt.claims', %s, true)", f'{{"sub": "{user}"}}')
            assert db.call("cancel_training_job", job_id) is may


def test_columns_of_the_older_queue_alone_are_not_written(db: Database, pipeline: Pipeline) -> None:
    job_id = queued(db, pipeline)
    (given,) = db.claim()
    running(db, given["run"])
    started = [notice("job_started", job_id)]
    db.call("record_progress", [report(given["run"], [point(1)]) | {"notices": started}])
    settled(db, given["run"], "completed", notices=[notice("job_completed", job_id)])
    for table in ("notifications", "model_artifacts", "metrics_points"):
        assert db.rows(f"select * from {table}") == []
    (cost,) = pipeline.costs(job_id)
    assert cost["job_id"] is None
    assert cost["details"]["run_id"] == given["run"]["id"]
    assert db.call("close_launches", []) == 0


def test_superseded_launchs_seconds_join_the_runs_cost_record(db: Database, pipeline: Pipeline) -> None:
    job_id = queued(db, pipeline)
    (given,) = db.claim()
    token, _ = running(db, given["run"])
    db.call("check_in_run", token, "loser", str(uuid4()))
    settled(db, given["run"], "completed")
    updates = len(pipeline.history(job_id))
    assert db.call("close_launches", [{"external_job_id": "loser", "gpu_seconds": 36}]) == 1
    (cost,) = pipeline.costs(job_id)
    assert float(cost["amount"]) == 0.46
    assert len(pipeline.history(job_id)) == updates


def test_queue_health_counts_both_queues(db: Database, pipeline: Pipeline) -> None:
    db.jobs(1)
    first, second = queued(db, pipeline), queued(db, pipeline)
    assert db.claim(max_jobs=2)[1]["job"]["id"] == str(first)
    health = db.call("queue_health")
    assert (health["queued"], health["live_runs"]) == (1, 2)
    assert [row["job_id"] for row in health["waiting"]] == [str(second)]
    assert {row["progress"] for row in health["runs"]} == {0}


def test_dropped_pipeline_table_ends_only_its_own_runs(db: Database, pipeline: Pipeline) -> None:
    queued(db, pipeline)
    (given,) = db.claim()
    pipeline.remove()
    db.jobs(1)
    (other,) = db.claim()
    lease = [{"run_id": run["id"], "lease_token": run["lease_token"]} for run in (given["run"], other["run"])]
    assert [news["cancel_requested"] for news in db.call("renew_training_runs", lease, 60)] == [True, False]
    assert settled(db, given["run"], "cancelled") == "cancelled"


def test_jobs_of_the_newer_queue_leave_events_for_webhooks(db: Database, pipeline: Pipeline) -> None:
    assert db.call("claim_webhook_deliveries", ["hooks.example.com-01234567"], 1, 60) == []
    queued(db, pipeline)
    run = db.claim()[0]["run"]
    running(db, run)
    assert settled(db, run, "completed") == "completed"
    told = db.rows("select type, user_id, body::jsonb->'data'->>'status' as status from training_webhook_events")
    assert [(row["type"], row["status"]) for row in told] == [
        ("job.started", "running"), ("job.completed", "completed"),
    ]  # fmt: skip
    assert {str(row["user_id"]) for row in told} == {run["user_id"]}
