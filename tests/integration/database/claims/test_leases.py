"""One worker claims a job, the next adopts its run, and a worker that lost the lease writes nothing more."""

from __future__ import annotations

import hashlib
import multiprocessing

import psycopg
import pytest

from tests.database.rows import Database, report


def _claim_until_empty(arguments: tuple[str, int, int | None]) -> list[str]:
    url, number, max_per_user = arguments
    claimed: list[str] = []
    with psycopg.connect(url, autocommit=True) as connection:
        empty = 0
        while empty < 3:
            row = connection.execute(
                "select public.claim_training_jobs(%s, 1, 60, %s)", (f"w{number}", max_per_user)
            ).fetchone()
            assert row is not None
            claimed += [assignment["job"]["id"] for assignment in row[0]]
            empty = 0 if row[0] else empty + 1
    return claimed


def _claim_with_eight_processes(url: str, max_per_user: int | None) -> list[str]:
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        parts = pool.map(_claim_until_empty, [(url, number, max_per_user) for number in range(8)])
    return [job_id for part in parts for job_id in part]


def test_eight_processes_claim_each_of_two_thousand_jobs_once(db: Database, database: str) -> None:
    db.jobs(2000)
    claimed = _claim_with_eight_processes(database, None)
    print(f"{len(claimed)} claims of {len(set(claimed))} jobs by 8 processes")
    assert len(claimed) == len(set(claimed)) == 2000
    assert db.row("select count(*) from training_runs")["count"] == 2000


def test_limit_for_a_user_holds_across_concurrent_workers(db: Database, database: str) -> None:
    for _ in range(5):
        db.jobs(20)
    claimed = _claim_with_eight_processes(database, 3)
    assert len(claimed) == 15
    per_user = db.rows("select count(*) from training_runs group by user_id")
    assert [row["count"] for row in per_user] == [3] * 5


def test_oldest_job_is_claimed_first_and_its_attempt_counted(db: Database) -> None:
    jobs = db.jobs(3)
    claimed = db.claim(max_jobs=2)
    assert [a["job"]["id"] for a in claimed] == [str(j) for j in jobs[:2]]
    assert [a["run"]["attempt"] for a in claimed] == [1, 1]
    assert db.job(jobs[0])["status"] == "initializing"
    assert db.job(jobs[2])["status"] == "queued"


def test_only_runs_with_an_expired_lease_are_adopted(db: Database) -> None:
    run = db.claimed_run()
    assert db.call("adopt_training_runs", "w2", 10, 60) == []
    db.expire(run["id"])
    (adopted,) = db.call("adopt_training_runs", "w2", 10, 60)
    assert adopted["run"]["id"] == run["id"]
    assert adopted["run"]["lease_token"] != run["lease_token"]
    assert adopted["job"]["id"] == run["job_id"]


def test_released_run_can_be_adopted_at_once(db: Database) -> None:
    run = db.claimed_run("w1")
    assert db.call("release_training_runs", "w2") == 0
    assert db.call("release_training_runs", "w1") == 1
    assert [a["run"]["id"] for a in db.call("adopt_training_runs", "w2", 10, 60)] == [run["id"]]


def test_handlings_are_reset_by_a_release_and_by_a_launch(db: Database) -> None:
    run = db.claimed_run("w1")
    handlings = "select handlings from training_runs where id = %s"
    assert db.call("begin_handling", run["id"], run["lease_token"]) == 1
    db.call("release_training_runs", "w1")
    assert db.rows(handlings, run["id"])[0]["handlings"] == 0
    (adopted,) = db.call("adopt_training_runs", "w2", 1, 60)
    lease = (run["id"], adopted["run"]["lease_token"])
    assert [db.call("begin_handling", *lease) for _ in range(3)] == [1, 2, 3]
    assert db.call("record_launch", *lease, "runpod", "accepted")
    assert db.call("begin_handling", *lease) == 1


def test_checked_in_run_with_unknown_gpu_time_is_billed(db: Database) -> None:
    run, _, _ = db.running_run()
    assert db.settle(run, gpu_seconds=0) == "completed"
    (cost,) = db.rows("select amount from cost_records where details->>'run_id' = %s", str(run["id"]))
    assert cost["amount"] == 0


def test_adoption_returns_the_gpu_time_used_so_far(db: Database) -> None:
    run, _, _ = db.running_run()
    db.rows("update training_runs set checked_in_at = last_seen_at - interval '90 seconds' where id = %s", run["id"])
    db.expire(run["id"])
    (adopted,) = db.call("adopt_training_runs", "w2", 1, 60)
    assert adopted["run"]["used_seconds"] == 90


def test_adoption_returns_the_hash_of_the_trainers_token(db: Database) -> None:
    run, token = db.launched_run()
    db.expire(run["id"])
    (adopted,) = db.call("adopt_training_runs", "w2", 1, 60)
    assert adopted["run"]["token_sha256"] == hashlib.sha256(token.encode()).hexdigest()
    assert "upload_grant" not in adopted["run"]


def test_run_of_a_deleted_job_is_billed(db: Database) -> None:
    run, _, _ = db.running_run()
    db.rows("delete from training_jobs where id = %s", run["job_id"])
    assert db.settle(run, "cancelled") == "cancelled"
    (cost,) = db.rows("select * from cost_records where user_id = %s", run["user_id"])
    assert (float(cost["amount"]), cost["job_id"]) == (0.42, None)
    assert cost["details"]["run_id"] == str(run["id"])
    assert db.run(run["id"])["gpu_seconds"] == 360


def test_run_of_a_deleted_user_settles_without_a_bill(db: Database) -> None:
    run, _, _ = db.running_run()
    db.rows("delete from training_jobs where id = %s", run["job_id"])
    db.rows("delete from datasets where user_id = %s", run["user_id"])
    db.rows("delete from auth.users where id = %s", run["user_id"])
    assert db.settle(run, "cancelled") == "cancelled"
    assert db.rows("select * from cost_records where user_id = %s", run["user_id"]) == []
    assert db.run(run["id"])["gpu_seconds"] == 360


@pytest.mark.parametrize("lost_by", ["time", "adoption"])
def test_worker_without_its_lease_cannot_write(db: Database, lost_by: str) -> None:
    run, token, execution = db.running_run()
    files = [{"name": "a", "path": "a", "bytes": 1, "sha256": "0" * 64}]
    assert db.call("request_upload", token, execution, files)["ok"]
    db.expire(run["id"])
    if lost_by == "adoption":
        db.call("adopt_training_runs", "w2", 1, 60)
    before = db.snapshot()
    lease = (run["id"], run["lease_token"])
    assert db.call("begin_handling", *lease) is None
    assert db.begin(run, token) == {"may_launch": False, "reason": "lease_lost"}
    assert db.call("record_launch", *lease, "runpod", "late") is False
    assert db.call("grant_upload", *lease, files, "sealed") is False
    (answer,) = db.call("record_progress", [report(run, [{"step": 1, "epoch": 1, "training_loss": 1}], progress=50)])
    assert answer["applied"] is False
    assert db.settle(run) is None
    (news,) = db.call("renew_training_runs", [{"run_id": str(run["id"]), "lease_token": str(run["lease_token"])}], 60)
    assert news["held"] is False
    assert db.snapshot() == before


def test_ended_run_cannot_be_settled_again(db: Database) -> None:
    run, _, _ = db.running_run()
    assert db.settle(run) == "completed"
    assert db.settle(run, "failed") == "completed"
    assert db.job(run["job_id"])["status"] == "completed"


def test_retry_waits_for_its_time_and_is_counted(db: Database) -> None:
    run, _, _ = db.running_run()
    assert db.settle(run, "queued") == "queued"
    assert db.claim() == []
    job = db.job(run["job_id"])
    assert (job["status"], job["retry_count"], job["external_job_id"]) == ("queued", 1, None)
    assert job["current_stage"] == "retry_after_test"
    db.rows("update training_runs set next_attempt_at = now()")
    (again,) = db.claim()
    assert (again["run"]["attempt"], again["run"]["transient_failures"]) == (2, 1)


def test_run_outlives_its_deleted_job_so_its_gpu_can_be_stopped(db: Database) -> None:
    run, token, execution = db.running_run()
    db.rows("delete from training_jobs where id = %s", run["job_id"])
    lease = [{"run_id": str(run["id"]), "lease_token": str(run["lease_token"])}]
    (news,) = db.call("renew_training_runs", lease, 60)
    assert news["cancel_requested"] is True
    assert db.call("check_in_run", token, run["external_job_id"], execution)["reason"] == "cancelled"
    assert db.settle(run, "cancelled") == "cancelled"
    assert db.run(run["id"])["status"] == "cancelled"
