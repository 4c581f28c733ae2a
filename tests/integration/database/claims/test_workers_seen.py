"""Workers write heartbeats, so that queue health reports a queue that no worker serves."""

from __future__ import annotations

from typing import Any

import pytest

from lora_worker.doctor.check import Check
from lora_worker.doctor.database import examine_workers
from tests.database.rows import Database


def report(db: Database, worker: str = "w1", **more: Any) -> None:
    sign = {"version": "1.0", "running_seconds": 60, "slots": 20, "held": 3, "max_per_user": 3, "problem": None, **more}
    assert db.call("report_worker", worker, sign) is True


def let_pass(db: Database, interval: str) -> None:
    db.rows(f"update training_workers set seen_at = seen_at - interval '{interval}'")


def checks(db: Database) -> list[Check]:
    return examine_workers(db.call("queue_health"))


def test_missing_worker_is_reported_only_once_a_job_waits(db: Database) -> None:
    (idle,) = checks(db)
    assert (idle.ok, idle.finding) == (None, "none has run yet")
    db.jobs()
    (missed,) = checks(db)
    assert (missed.ok, missed.remedy) == (False, "start one: `lora-worker run`")


@pytest.mark.parametrize(
    ("interval", "words"),
    [("3 minutes", "3 min"), ("3 hours", "3 h"), ("50 hours", "2 days")],
)
def test_queue_health_reports_since_when_no_worker_runs(db: Database, interval: str, words: str) -> None:
    db.jobs()
    report(db)
    let_pass(db, interval)
    (waiting,) = db.call("queue_health")["waiting"]
    assert waiting["waits_for"] == f"a worker: none has been seen for {words}; start one"
    (check,) = checks(db)
    assert (check.ok, check.finding) == (False, f"none has been seen for {words}")


def test_queue_health_lists_each_worker_with_its_runs_and_problems(db: Database) -> None:
    db.jobs()
    report(db)
    report(db, "w2", slots=10, held=0, problem="RunPod is not reachable")
    (waiting,) = db.call("queue_health")["waiting"]
    assert waiting["waits_for"] == "a free worker slot"
    running, troubled = checks(db)
    assert (running.ok, running.finding) == (True, "2 running, 3 of 30 slots in use")
    assert (troubled.ok, troubled.finding) == (False, "w2: RunPod is not reachable")
    report(db, "w2", held=1)
    workers = {row["name"]: row for row in db.call("queue_health")["workers"]}
    assert (workers["w2"]["held"], workers["w2"]["problem"]) == (1, None)
    assert 59 < workers["w1"]["running_seconds"] < 90


def test_worker_heartbeats_are_bounded_and_expire(db: Database) -> None:
    for number in range(130):
        report(db, f"pass {number}", problem="x" * 10_000, version="y" * 10_000)
    rows = db.rows("select name, version, problem from training_workers")
    assert len(rows) == 100
    assert "pass 129" in {row["name"] for row in rows}
    assert max(len(row["problem"]) for row in rows) == 500
    let_pass(db, "8 days")
    report(db, "today")
    assert [row["name"] for row in db.rows("select name from training_workers")] == ["today"]


def test_cron_passes_are_distinguished_from_a_stopped_worker(db: Database) -> None:
    db.jobs()
    report(db, "pass 1", single_pass=True)
    let_pass(db, "20 minutes")
    report(db, "pass 2", single_pass=True, max_per_user=5)
    let_pass(db, "7 minutes")
    health = db.call("queue_health")
    assert health["no_worker"] is None
    assert [(row["name"], row["single_pass"], row["max_per_user"]) for row in health["workers"]] == [
        ("pass 2", True, 5)
    ]
    assert health["waiting"][0]["waits_for"] == "a free worker slot"
    (check,) = examine_workers(health)
    assert (check.ok, check.finding) == (True, "last pass 7 min ago (`run --once`)")


def test_missing_cron_passes_are_reported_after_an_hour(db: Database) -> None:
    db.jobs()
    report(db, "pass", single_pass=True)
    let_pass(db, "3 hours")
    (check,) = checks(db)
    assert (check.ok, check.finding) == (False, "the last pass was 3 h ago")
    (waiting,) = db.call("queue_health")["waiting"]
    assert waiting["waits_for"] == "a worker: the last pass was 3 h ago; start one"


def test_cron_passes_do_not_hide_a_stopped_worker(db: Database) -> None:
    report(db, problem="RunPod is not reachable")
    report(db, "pass", single_pass=True, slots=100)
    running, passed, troubled = checks(db)
    assert (running.finding, passed.ok) == ("1 running, 3 of 20 slots in use", True)
    assert (troubled.ok, troubled.finding) == (False, "w1: RunPod is not reachable")
    let_pass(db, "3 minutes")
    (passed,) = checks(db)
    assert passed.finding == "last pass 3 min ago (`run --once`)"


@pytest.mark.parametrize("odd", [{"running_seconds": 1e300}, {"running_seconds": None}, {"max_per_user": None}])
def test_invalid_number_does_not_spoil_a_workers_heartbeat(db: Database, odd: dict[str, Any]) -> None:
    report(db, **odd)
    assert len(db.call("queue_health")["workers"]) == 1
