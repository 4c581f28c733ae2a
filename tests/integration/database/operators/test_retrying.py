"""A job that has failed or was cancelled is started again: as itself, with a fresh count of failures."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.application.pipeline import Pipeline
from tests.database.rows import Database, Row, notice
from tests.integration.database.rights.world import Actor, World
from tests.processes.waiting import PATIENCE_SECONDS, until

RETRIED = {"retried": True, "reason": None}


def failed_run(db: Database, **more: object) -> Row:
    run, _, _ = db.running_run()
    assert db.settle(run, "failed", error_code="child_crashed", **more) == "failed"
    return run


def claim_again(db: Database) -> Row:
    (claimed,) = db.claim()
    return dict(claimed["run"])


def test_failed_job_is_claimed_again_under_its_own_id(db: Database) -> None:
    """Its trainer looks for checkpoints in the job's folder, so the id is what leads it there."""
    run = failed_run(db)
    assert db.call("retry_training_job", run["job_id"]) == RETRIED
    job = db.job(run["job_id"])
    assert (job["status"], job["current_stage"], job["retry_count"]) == ("queued", "queued", 1)
    ended = ("completed_at", "final_cost", "error_message", "external_job_id", "estimated_completion_at")
    assert [job[column] for column in ended] == [None] * 5
    assert (job["progress"], job["current_step"]) == (0, 0)
    again = claim_again(db)
    assert (again["job_id"], again["attempt"]) == (str(run["job_id"]), 2)
    assert again["spent_cost"] == float(job["current_cost"]) > 0


def test_failures_of_before_the_retry_do_not_count(db: Database) -> None:
    run, _, _ = db.running_run()
    for fault in ("transient", "infrastructure"):
        db.settle(run, "queued", fault=fault)
        db.rows("update training_runs set next_attempt_at = now()")
        run = claim_again(db)
    assert (run["transient_failures"], run["infrastructure_failures"]) == (1, 1)
    db.settle(run, "failed", fault="transient")
    assert db.call("retry_training_job", run["job_id"]) == RETRIED
    run = claim_again(db)
    assert (run["attempt"], run["transient_failures"], run["infrastructure_failures"]) == (4, 0, 0)
    db.settle(run, "queued", fault="transient")
    db.rows("update training_runs set next_attempt_at = now()")
    assert claim_again(db)["transient_failures"] == 1


def test_user_is_told_anew_of_a_job_that_was_started_again(db: Database) -> None:
    run = failed_run(db)
    for _ in range(2):
        job = str(run["job_id"])
        db.call("retry_training_job", job)
        run = claim_again(db)
        db.settle(run, "failed", notices=[notice("job_failed", job)])
        db.settle(run, "failed", notices=[notice("job_failed", job)])
    assert len(db.rows("select 1 from notifications where type = 'job_failed'")) == 2


def test_cancelled_job_waits_until_its_run_is_stopped(db: Database) -> None:
    run, _, _ = db.running_run()
    assert db.call("cancel_training_job", run["job_id"]) is True
    refused = db.call("retry_training_job", run["job_id"])
    assert refused == {"retried": False, "reason": "its last run is still being stopped: try again in a minute"}
    db.settle(run, "cancelled")
    assert db.call("retry_training_job", run["job_id"]) == RETRIED
    assert claim_again(db)["attempt"] == 2


def test_job_cancelled_between_two_attempts_is_claimed_at_once(db: Database) -> None:
    run, _, _ = db.running_run()
    db.settle(run, "queued", retry_after_seconds=3600)
    db.call("cancel_training_job", run["job_id"])
    assert db.call("retry_training_job", run["job_id"]) == RETRIED
    assert claim_again(db)["attempt"] == 2


@pytest.mark.parametrize("status", ["queued", "initializing", "running", "completed"])
def test_job_that_has_not_failed_is_left_alone(db: Database, status: str) -> None:
    (job,) = db.jobs()
    db.rows("update training_jobs set status = %s where id = %s", status, job)
    before = db.snapshot()
    answer = db.call("retry_training_job", job)
    assert answer["reason"].startswith(f"the job is {status}: only one that failed or was cancelled")
    assert db.snapshot() == before
    assert db.call("retry_training_job", uuid4()) == {"retried": False, "reason": "there is no such job"}


def test_job_of_the_newer_queue_starts_again_without_a_deployment(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    job = pipeline.queue(user_id=user, dataset_id=db.dataset(user))
    run = claim_again(db)
    db.settle(run, "failed")
    assert pipeline.job(job)["status"] == "failed"
    assert db.call("retry_training_job", job) == RETRIED
    row = pipeline.job(job)
    assert (row["status"], row["error_message"], row["completed_at"]) == ("pending", None, None)
    assert claim_again(db)["attempt"] == 2
    assert pipeline.webhook_calls(job) == 0


def test_retry_of_a_job_whose_dataset_is_uploaded_anew_waits_for_it(db: Database) -> None:
    run = failed_run(db)
    db.rows("update training_jobs set created_at = now()")
    db.rows("update datasets set status = 'validating'")
    assert db.call("retry_training_job", run["job_id"]) == RETRIED
    assert db.job(run["job_id"])["current_stage"] == "waiting_for_dataset"
    assert db.claim() == []


def test_of_two_retries_at_once_one_starts_the_job(db: Database, database: str) -> None:
    run = failed_run(db)
    with psycopg.connect(database) as first, ThreadPoolExecutor(1) as pool:
        ask = "select public.retry_training_job(%s)"
        assert first.execute(ask, [run["job_id"]]).fetchone() == (RETRIED,)
        second = pool.submit(db.call, "retry_training_job", run["job_id"])
        with psycopg.connect(database, autocommit=True) as watching:
            waits = "select from pg_locks where not granted"
            until(lambda: watching.execute(waits).fetchone() is not None, "the second retry waits for the first")
        first.commit()
        assert second.result(PATIENCE_SECONDS)["reason"].startswith("the job is queued")
    assert claim_again(db)["attempt"] == 2
    assert db.claim() == []


# ── the job's owner ─────────────────────────────────────────────────────────────────────────────────


def retry_as(db: Database, user: UUID, job: UUID) -> Row:
    world = World(db, user, user, job)
    (row,) = world.attempt(Actor("authenticated", user), "select retry_training_job(%s) as answer", job)  # type: ignore[misc]
    return dict(row["answer"])


def test_owner_starts_an_own_job_again_and_nobody_elses(db: Database) -> None:
    run = failed_run(db)
    job = UUID(str(run["job_id"]))
    assert retry_as(db, db.user(), job) == {"retried": False, "reason": "there is no such job"}
    assert retry_as(db, UUID(str(run["user_id"])), job) == RETRIED


def test_owner_with_the_most_waiting_jobs_starts_none_again(db: Database) -> None:
    run = failed_run(db)
    db.rows("insert into training_terms (document, written_by) values ('{\"max_queued_per_user\": 2}', 'w')")
    db.jobs(2, UUID(str(run["user_id"])))
    refused = retry_as(db, UUID(str(run["user_id"])), UUID(str(run["job_id"])))
    assert (refused["retried"], refused["reason"][:25]) == (False, "2 of your jobs wait alrea")
    # An operator may.
    assert db.call("retry_training_job", run["job_id"]) == RETRIED
