"""While an operator holds jobs nothing new of them is claimed, and live runs go on; a drained worker takes nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import psycopg
import pytest

from tests.application.pipeline import Pipeline
from tests.database.rows import Database, report
from tests.processes.waiting import PATIENCE_SECONDS, until


def reasons(db: Database) -> dict[str, str]:
    return {row["job_id"]: row["waits_for"] for row in db.call("queue_health")["waiting"]}


def claimed_jobs(db: Database) -> set[str]:
    return {row["run"]["job_id"] for row in db.claim(max_jobs=10)}


@pytest.fixture(autouse=True)
def _living_worker(db: Database) -> None:
    db.call("report_worker_2", "w1", {"slots": 20, "held": 0})


def test_hold_of_one_user_leaves_the_jobs_of_others(db: Database) -> None:
    held, free = db.user(), db.user()
    (waits,), (goes,) = db.jobs(user=held), db.jobs(user=free)
    assert db.call("hold_training", held, "too many of them")
    assert reasons(db) == {
        str(waits): "an operator, who holds the jobs of its user: too many of them",
        str(goes): "a free worker slot",
    }
    assert claimed_jobs(db) == {str(goes)}
    assert db.call("release_training", held) is True
    assert db.call("release_training", held) is False
    assert claimed_jobs(db) == {str(waits)}


def test_hold_of_all_stops_claims_and_no_live_run(db: Database) -> None:
    run, _, _ = db.running_run()
    (waits,) = db.jobs()
    db.call("hold_training", None, None)
    db.call("hold_training", None, "an upgrade")
    assert reasons(db) == {str(waits): "an operator, who holds all jobs: an upgrade"}
    assert claimed_jobs(db) == set()
    (answer,) = db.call("record_progress", [report(run, current_step=5)])
    assert answer["applied"]
    assert db.settle(run) == "completed"
    (hold,) = db.call("queue_health")["held"]["operator_holds"]
    assert (hold["user_id"], hold["reason"]) == (None, "an upgrade")
    # The hold of all is not one of this user.
    assert db.call("release_training", db.user()) is False
    assert claimed_jobs(db) == set()
    assert db.call("release_training", None) is True
    assert claimed_jobs(db) == {str(waits)}


@pytest.mark.parametrize("order", ["hold_training(null, 'now')", "drain_training_workers('w1')"])
def test_order_of_an_operator_waits_for_a_claim_that_is_under_way(db: Database, database: str, order: str) -> None:
    db.jobs(2)
    with psycopg.connect(database) as claiming, ThreadPoolExecutor(1) as pool:
        # A claim that finds nothing has read the table of holds all the same.
        claiming.execute("select public.claim_training_jobs_2('w1', 0, 60, null)")
        ordered = pool.submit(db.rows, f"select public.{order}")
        with psycopg.connect(database, autocommit=True) as watching:
            waits = "select from pg_locks where locktype = 'advisory' and not granted"
            until(lambda: watching.execute(waits).fetchone() is not None, "the order waits for the claim")
        assert not ordered.done()
        claiming.commit()
        ordered.result(PATIENCE_SECONDS)
    assert claimed_jobs(db) == set()


def test_claims_of_two_workers_do_not_wait_for_each_other(db: Database, database: str) -> None:
    db.jobs(2)
    with psycopg.connect(database) as claiming:
        claiming.execute("select public.claim_training_jobs_2('w1', 1, 60, null)")
        assert len(db.claim("w2")) == 1


def test_retry_of_a_held_user_waits_for_the_operator(db: Database) -> None:
    run, _, _ = db.running_run()
    db.settle(run, "queued")
    db.rows("update training_runs set next_attempt_at = now()")
    db.call("hold_training", run["user_id"], "hold it")
    assert claimed_jobs(db) == set()
    assert reasons(db)[str(run["job_id"])].endswith(": hold it")


@pytest.mark.parametrize("column", ["user_id", "created_by"])
def test_hold_covers_the_newer_queue(db: Database, pipeline: Pipeline, column: str) -> None:
    """There a job's user may be its creator, of whom the candidates of a claim know nothing."""
    user = db.user()
    job = pipeline.queue(**{column: user, "dataset_id": db.dataset(user)})
    db.call("hold_training", user, "no")
    assert claimed_jobs(db) == set()
    assert reasons(db) == {str(job): "an operator, who holds the jobs of its user: no"}
    db.call("release_training", user)
    assert claimed_jobs(db) == {str(job)}


def test_drained_worker_claims_nothing_while_others_do(db: Database) -> None:
    db.call("report_worker_2", "fleet-a-0123abcd", {"slots": 20, "held": 3})
    db.call("report_worker_2", "fleet-b-0123abcd", {"slots": 20, "held": 0})
    assert db.call("drain_training_workers", "fleet") == []
    assert db.call("drain_training_workers", "fleet-a") == [
        {"name": "fleet-a-0123abcd", "held": 3, "single_pass": False}
    ]
    (job,) = db.jobs()
    assert db.claim("fleet-a-0123abcd") == []
    assert [row["run"]["job_id"] for row in db.claim("fleet-b-0123abcd")] == [str(job)]
    news = {"slots": 20, "held": 3}
    assert db.call("report_worker_2", "fleet-a-0123abcd", news) == {"drain": True}
    assert db.call("report_worker_2", "fleet-b-0123abcd", news) == {"drain": False}
    workers = {row["name"]: row["draining"] for row in db.call("queue_health")["workers"]}
    assert workers == {"fleet-a-0123abcd": True, "fleet-b-0123abcd": False, "w1": False}


def test_drain_of_all_spares_workers_that_start_afterwards(db: Database) -> None:
    db.call("report_worker_2", "cron-1", {"slots": 20, "held": 0, "single_pass": True})
    drained = db.call("drain_training_workers", None)
    assert drained == [
        {"name": "cron-1", "held": 0, "single_pass": True},
        {"name": "w1", "held": 0, "single_pass": False},
    ]
    db.rows("delete from training_workers where single_pass")
    (job,) = db.jobs()
    assert reasons(db) == {str(job): "a worker: all are being drained; start one"}
    db.call("report_worker_2", "w2", {"slots": 20, "held": 0})
    assert reasons(db) == {str(job): "a free worker slot"}
    assert db.claim("w1") == []
    assert len(db.claim("w2")) == 1


def test_drained_worker_goes_on_with_its_runs(db: Database) -> None:
    run, _, _ = db.running_run()
    db.call("drain_training_workers", "w1")
    lease = [{"run_id": str(run["id"]), "lease_token": str(run["lease_token"]), "progress_number": 0}]
    (news,) = db.call("renew_training_runs_2", lease, 60)
    assert news["held"]
    assert db.settle(run) == "completed"
    assert db.run(UUID(str(run["id"])))["status"] == "succeeded"
