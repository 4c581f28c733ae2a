"""Promises 1, 2, 5: one worker claims, the next adopts, and who lost the lease writes nothing more."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.database.rows import Database, outcome, report


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
    before = _everything(db)
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
    assert _everything(db) == before


def _everything(db: Database) -> str:
    tables = ("training_jobs", "training_runs", "training_launches", "metrics_points", "model_artifacts",
              "cost_records", "notifications")  # fmt: skip
    return json.dumps([db.rows(f"select * from {table}") for table in tables], default=str)


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


def test_fence_admits_one_launch_and_its_newest_execution(db: Database) -> None:
    _, token = db.launched_run("ext-1")
    first, second, third = str(uuid4()), str(uuid4()), str(uuid4())

    def check_in(external: str, execution: str) -> str:
        return db.call("check_in_run", token, external, execution)["reason"]

    assert check_in("ext-1", first) == "ok"
    assert check_in("ext-2", second) == "superseded"
    assert check_in("ext-1", third) == "ok"
    assert check_in("ext-1", first) == "superseded"
    assert check_in("ext-1", third) == "ok"
    assert db.call("check_in_run", "wrong" * 12, "ext-1", third) == {"may_train": False, "reason": "unknown_token"}
    assert db.call("request_upload", token, first, [{"path": "a"}])["ok"] is False
    assert db.call("upload_grant", token, first)["granted"] is False
    strays = db.call("stray_launches", 10)
    assert [stray["external_job_id"] for stray in strays] == ["ext-2"]


_FILE = {"name": "a", "path": "a", "bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "wrong",
    [
        1,
        "a",
        {"path": "a"},
        _FILE | {"name": 1},
        _FILE | {"path": None},
        _FILE | {"path": ""},
        _FILE | {"bytes": -1},
        _FILE | {"bytes": 1.5},
        _FILE | {"bytes": "1"},
        _FILE | {"bytes": 1e30},
        _FILE | {"sha256": "0" * 63},
        _FILE | {"sha256": "G" * 64},
    ],
)
def test_upload_request_must_name_plain_files(db: Database, wrong: Any) -> None:
    run, token, execution = db.running_run()
    with pytest.raises(psycopg.Error, match="each of files must") as refusal:
        db.call("request_upload", token, execution, [_FILE, wrong])
    assert refusal.value.sqlstate == "PT400"
    assert db.run(run["id"])["upload_request"] is None
    assert db.call("request_upload", token, execution, [_FILE])["ok"]


@pytest.mark.parametrize("place", ["uploads/{id}/manifest.json", "{user_id}/{id}/manifest.json"])
def test_published_run_is_not_trained_again_after_a_lost_result(db: Database, place: str) -> None:
    run, token, execution = db.running_run()
    files = [{"name": "a", "path": "a", "bytes": 1, "sha256": "0" * 64}]

    def check_in(execution: str) -> str:
        return str(db.call("check_in_run", token, run["external_job_id"], execution)["reason"])

    db.rows("create schema if not exists storage")
    db.rows("create table storage.objects (name text)")
    assert check_in(execution := str(uuid4())) == "ok"
    assert db.call("request_upload", token, execution, files)["ok"]
    assert db.call("grant_upload", run["id"], run["lease_token"], files, "sealed")
    assert check_in(execution := str(uuid4())) == "ok"
    db.rows("insert into storage.objects values (%s)", place.format(**run))
    assert check_in(str(uuid4())) == "ended"
    assert check_in(execution) == "ok"


def test_container_cannot_claim_the_job_id_of_another_run(db: Database) -> None:
    (another, _, _), (run, token) = db.running_run(), db.launched_run()
    answer = db.call("check_in_run", token, another["external_job_id"], str(uuid4()))
    assert (answer["may_train"], answer["reason"]) == (False, "superseded")
    assert db.run(run["id"])["external_job_id"] == run["external_job_id"]
    assert db.call("check_in_run", token, run["external_job_id"], str(uuid4()))["may_train"]


@pytest.mark.parametrize("named", ["x/../../purge-queue", "..", "a b", "x?y", "", "x" * 256, None, "x\n"])
def test_container_cannot_give_an_api_route_as_its_job_id(db: Database, named: str | None) -> None:
    run, token = db.launched_run()
    before = db.run(run["id"])
    for refused in (
        lambda: db.call("check_in_run", token, named, str(uuid4())),
        lambda: db.call("record_launch", run["id"], run["lease_token"], "runpod", named),
    ):
        with pytest.raises(psycopg.Error, match="external_job_id must be") as caught:
            refused()
        assert caught.value.sqlstate == "PT400"
    assert db.run(run["id"]) == before


def test_unrecorded_launch_becomes_known_by_its_check_in(db: Database) -> None:
    run = db.claimed_run()
    token = uuid4().hex * 2
    assert db.begin(run, token)["may_launch"]
    assert db.call("check_in_run", token, "ext-9", str(uuid4()))["may_train"]
    assert db.run(run["id"])["external_job_id"] == "ext-9"
    assert db.begin(run, token) == {"may_launch": False, "reason": "checked_in"}
    # The POST's late answer names the same id, or a loser's: the owner stays.
    assert db.call("record_launch", run["id"], run["lease_token"], "runpod", "ext-10") is True
    assert db.run(run["id"])["external_job_id"] == "ext-9"


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
    before = _everything(db)
    with pytest.raises(psycopg.Error):
        db.call("settle_run", run["id"], run["lease_token"], broken)
    assert _everything(db) == before
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


@pytest.mark.fault(3)
def test_queue_health_gives_the_reason_why_each_job_waits(db: Database) -> None:
    run, _, _ = db.running_run()
    db.settle(run, "queued")
    busy = db.user()
    db.jobs(2, busy)
    db.claim(max_jobs=1)
    db.jobs()

    def reasons() -> list[str]:
        health = db.call("queue_health")
        assert (health["queued"], health["live_runs"], health["expired_leases"]) == (3, 1, 0)
        return sorted(row["waits_for"].split(" at ")[0] for row in health["waiting"])

    db.call("report_worker", "w1", {"slots": 20, "held": 1, "max_per_user": 1})
    assert reasons() == ["a free worker slot", "its user has 1 live runs, and may have no more", "retry"]
    # One live run is no reason to wait where two are allowed, or any number.
    for limit in (2, None):
        db.call("report_worker", "w2", {"slots": 20, "held": 1, "max_per_user": limit})
        assert reasons() == ["a free worker slot", "a free worker slot", "retry"]


def test_infinite_creation_date_does_not_hide_other_jobs_waits(db: Database) -> None:
    jobs = db.jobs(3)
    db.rows("update training_jobs set created_at = 'infinity' where id = %s", jobs[0])
    db.rows("update training_jobs set created_at = '-infinity' where id = %s", jobs[1])
    health = db.call("queue_health")
    assert health["queued"] == 3
    assert 86000 < health["oldest_wait_seconds"] < 87000
    assert all(isinstance(row["wait_seconds"], int | float) for row in health["waiting"])


def test_migrations_may_run_any_number_of_times(db: Database, database: str) -> None:
    from lora_worker.database.migrations import migrate

    run, _, _ = db.running_run()
    before = _everything(db)
    db.rows("update training_runs set lease_expires_at = lease_expires_at")
    assert migrate(database) == migrate(database)
    assert _everything(db) == before
    assert db.settle(run) == "completed"
