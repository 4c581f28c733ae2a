"""A job waits in the queue until its dataset is validated, shows that it waits, and then starts or fails."""

from __future__ import annotations

from uuid import UUID

import httpx
import pytest

from lora_worker.database.rows import Assignment, parse_assignment
from lora_worker.datasets.preflight import check_dataset_row
from lora_worker.errors import DatasetPendingError, PreflightError
from tests.database.rows import Database
from tests.processes.stage import Stage


def queued(db: Database, status: str) -> tuple[UUID, UUID]:
    """Queue a job on a dataset with that status; returns the dataset's and the job's id."""
    user = db.user()
    dataset = db.dataset(user)
    db.rows(
        "update datasets set status = %s, training_ready = %s, storage_path = %s where id = %s",
        status, status == "ready", f"{user}/{dataset}/data.jsonl", dataset,
    )  # fmt: skip
    job = db.row(
        "insert into training_jobs (user_id, dataset_id, preset_id, hyperparameters, gpu_config, total_epochs,"
        " estimated_total_cost, current_stage)"
        " values (%s, %s, 'fast', '{}', '{\"type\": \"H100\"}', 2, 1, 'queued') returning id", user, dataset,
    )["id"]  # fmt: skip
    return dataset, job


def claimed(db: Database) -> list[Assignment]:
    return [parse_assignment(row) for row in db.claim(max_jobs=10)]


def check(assignment: Assignment) -> None:
    assert assignment.job is not None
    patience = assignment.run.dataset_patience_seconds
    check_dataset_row(assignment.job, assignment.dataset, patience_seconds=patience)


@pytest.mark.parametrize("status", ["uploading", "validating"])
def test_job_waiting_for_its_dataset_uses_no_slot(db: Database, status: str) -> None:
    dataset, job = queued(db, status)
    assert (db.job(job)["status"], db.job(job)["current_stage"]) == ("queued", "waiting_for_dataset")
    assert claimed(db) == []
    (waiting,) = db.call("queue_health")["waiting"]
    assert waiting["waits_for"] == "its dataset, which is being uploaded or validated"
    db.rows("update datasets set status = 'ready', training_ready = true where id = %s", dataset)
    assert db.job(job)["current_stage"] == "queued"
    (one,) = claimed(db)
    check(one)


def test_job_waiting_for_its_dataset_does_not_block_later_jobs(db: Database) -> None:
    queued(db, "uploading")
    _, other = queued(db, "ready")
    assert [one.run.job_id for one in claimed(db)] == [other]


def test_job_of_an_invalid_dataset_fails_with_the_reason(db: Database) -> None:
    dataset, _ = queued(db, "validating")
    db.rows("update datasets set status = 'error', error_message = %s where id = %s", "Line 3: no\nJSON.", dataset)
    (one,) = claimed(db)
    with pytest.raises(
        PreflightError, match=r"failed: Line 3: no JSON\. Mend the file and upload it again\."
    ) as caught:
        check(one)
    assert "wait" not in str(caught.value)
    assert not isinstance(caught.value, DatasetPendingError)


@pytest.mark.parametrize(
    ("status", "words"), [("uploading", "was not uploaded to its end"), ("validating", "was not validated")]
)
def test_job_fails_after_waiting_a_day_for_its_dataset(db: Database, status: str, words: str) -> None:
    _, job = queued(db, status)
    db.rows("update training_jobs set created_at = now() - interval '86399 seconds' where id = %s", job)
    assert claimed(db) == []
    db.rows("update training_jobs set created_at = now() - interval '86401 seconds' where id = %s", job)
    (one,) = claimed(db)
    with pytest.raises(PreflightError, match=f"{words} within a day") as caught:
        check(one)
    assert not isinstance(caught.value, DatasetPendingError)


def test_infinite_creation_date_does_not_extend_the_wait(db: Database) -> None:
    _, job = queued(db, "uploading")
    db.rows("update training_jobs set created_at = 'infinity' where id = %s", job)
    assert len(claimed(db)) == 1


def test_jobs_wait_again_while_their_dataset_is_revalidated(db: Database) -> None:
    dataset, job = queued(db, "ready")
    assert db.job(job)["current_stage"] == "queued"
    (one,) = claimed(db)
    db.rows("update datasets set status = 'validating' where id = %s", dataset)
    assert db.job(job)["current_stage"] == "initializing"
    db.expire(one.run.id)
    (adopted,) = db.call("adopt_training_runs", "w2", 10, 60)
    with pytest.raises(DatasetPendingError):
        check(parse_assignment(adopted))


def test_dataset_change_leaves_stages_of_other_jobs_alone(db: Database) -> None:
    dataset, job = queued(db, "ready")
    db.rows("update training_jobs set current_stage = 'retry_after_gpu_lost' where id = %s", job)
    _, other = queued(db, "ready")
    db.rows("update datasets set status = 'validating' where id = %s", dataset)
    assert [db.job(one)["current_stage"] for one in (job, other)] == ["retry_after_gpu_lost", "queued"]


def test_worker_starts_a_job_once_its_dataset_is_ready(stage: Stage) -> None:
    dataset = stage.user.upload(status="uploading", training_ready=False)
    job = stage.user.queue(dataset)
    stage.one_pass()
    row = stage.user.job(job)
    assert (row["status"], row["current_stage"], row["retry_count"]) == ("queued", "waiting_for_dataset", 0)
    assert stage.launches(job) == []
    headers = {"apikey": stage.project.secret_key, "authorization": f"Bearer {stage.project.secret_key}"}
    httpx.patch(
        f"{stage.project.url}/rest/v1/datasets?id=eq.{dataset}",
        json={"status": "ready", "training_ready": True},
        headers=headers if stage.project.secret_key.startswith("eyJ") else {"apikey": stage.project.secret_key},
    ).raise_for_status()
    stage.one_pass()
    assert len(stage.launches(job)) == 1
