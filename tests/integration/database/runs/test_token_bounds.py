"""Calls with a run's token, or without one, can store only a bounded amount, however often they are made."""

from __future__ import annotations

import json
from uuid import uuid4

import psycopg
import pytest

from tests.database.rows import Database, Row, notice, point, report

MEGABYTE = 1_000_000
FILE = {"name": "a", "path": "a", "bytes": 1, "sha256": "0" * 64}
RUNS = 12


def check_in(db: Database, token: str, external_job_id: str, execution: str | None = None) -> Row:
    answer = db.call("check_in_run", token, external_job_id, execution or str(uuid4()))
    assert isinstance(answer, dict)
    return answer


def test_invented_job_ids_create_a_bounded_number_of_launches(db: Database) -> None:
    run, token, execution = db.running_run()
    for number in range(60):
        assert check_in(db, token, f"invented-{number}")["may_train"] is False
    launches = db.row("select count(*) from training_launches")["count"]
    print(f"{launches} launches")
    assert launches <= 20
    assert check_in(db, token, run["external_job_id"], execution)["may_train"] is True


def test_unconfirmed_launch_is_recognised_beside_invented_ids(db: Database) -> None:
    run = db.claimed_run()
    token = uuid4().hex * 2
    assert db.begin(run, token)["may_launch"]
    for number in range(60):
        check_in(db, token, f"invented-{number}")
    assert db.call("record_launch", run["id"], run["lease_token"], "runpod", "real")
    assert db.rows("select 1 from training_launches where external_job_id = 'real'")


def test_executions_of_a_run_are_limited(db: Database) -> None:
    run, token, execution = db.running_run()
    for _ in range(30):
        execution = str(uuid4())
        assert check_in(db, token, run["external_job_id"], execution)["may_train"]
    for _ in range(200):
        answer = check_in(db, token, run["external_job_id"])
        if answer["may_train"]:
            execution = db.run(run["id"])["execution_id"]
    assert len(db.run(run["id"])["former_execution_ids"]) == 100
    assert answer == {"may_train": False, "reason": "superseded", "cancel_requested": False, "attempt": 1}
    assert check_in(db, token, run["external_job_id"], execution)["may_train"]


def test_stored_points_of_a_run_are_limited(db: Database) -> None:
    run, _, _ = db.running_run()
    for start in range(0, 6000, 1000):
        steps = [point(step) for step in range(start, start + 1000)]
        assert db.call("record_progress", [report(run, steps)])[0]["applied"]
    # As many as the chart keeps.
    assert len(db.run(run["id"])["point_steps"]) == 100
    assert db.row("select count(*) from metrics_points")["count"] == 100


def test_every_stray_launch_gets_its_turn_among_many(db: Database) -> None:
    runs = []
    for _ in range(3):
        run, token, _ = db.running_run()
        for _ in range(10):
            check_in(db, token, uuid4().hex)
        runs.append(run)
    open_strays = db.call("queue_health")["stray_launches"]
    assert open_strays == 30
    seen: set[str] = set()
    for _ in range(3):
        given = db.call("stray_launches", 10)
        assert len(given) == 10
        seen |= {stray["external_job_id"] for stray in given}
    assert len(seen) == open_strays
    assert db.call("queue_health")["stray_launches"] == open_strays


@pytest.mark.parametrize("huge", ["x" * 50 * MEGABYTE, "", "ä" * 201])
def test_huge_token_is_refused_before_it_is_hashed(db: Database, huge: str) -> None:
    db.running_run()
    execution = str(uuid4())
    assert check_in(db, huge, "a")["reason"] == "unknown_token"
    assert db.call("request_upload", huge, execution, [FILE])["reason"] == "unknown_token"
    assert db.call("upload_grant", huge, execution)["reason"] == "unknown_token"


def test_huge_job_id_is_refused(db: Database) -> None:
    _, token = db.launched_run()
    with pytest.raises(psycopg.Error, match="external_job_id must be") as refused:
        check_in(db, token, "x" * 50 * MEGABYTE)
    assert refused.value.sqlstate == "PT400"


@pytest.mark.parametrize(
    "files",
    [
        "[" + ",".join(["1"] * 10 * MEGABYTE) + "]",
        json.dumps("[" + " " * 50 * MEGABYTE + "]"),
        json.dumps([FILE | {"more": "x" * MEGABYTE}]),
        "[" + ",".join(['{"a": [1e131071, 1e131071, 1e131071]}'] * 200) + "]",
        json.dumps([FILE] * 201),
        json.dumps([FILE | {"name": "x" * 401}]),
        json.dumps([FILE | {"name": "x" * 400, "path": "y" * 400}] * 200),
        "[" * 3000 + "]" * 3000,
    ],
    ids=["ten million entries", "50 MB of text", "a large entry", "long as text", "201", "a name", "in all", "deep"],
)
def test_oversized_upload_request_is_refused(db: Database, files: str) -> None:
    run, token, execution = db.running_run()
    with pytest.raises(psycopg.Error, match=r"must be an array of 1 to 200|each of files must") as refused:
        db.call("request_upload", token, execution, files)
    assert refused.value.sqlstate == "PT400"
    assert db.run(run["id"])["upload_request"] is None


def test_upload_request_stores_only_its_known_keys(db: Database) -> None:
    run, token, execution = db.running_run()
    assert db.call("request_upload", token, execution, [FILE | {"more": ["x"] * 1000}, FILE | {"path": "b"}])["ok"]
    assert db.run(run["id"])["upload_request"] == [FILE, FILE | {"path": "b"}]


def test_largest_upload_requests_fit_the_answer_in_turns(db: Database) -> None:
    largest = [FILE | {"name": "x" * 200, "path": f"{number}" + "y" * 190} for number in range(190)]
    leases = []
    for _ in range(RUNS):
        run, token, execution = db.running_run()
        assert db.call("request_upload", token, execution, largest)["ok"]
        leases.append({"run_id": str(run["id"]), "lease_token": str(run["lease_token"])})
    seen: set[str] = set()
    for _ in range(60):
        news = db.call("renew_training_runs", leases, 60)
        assert all(each["held"] for each in news)
        asking = [each for each in news if each["upload_request"]]
        assert 1 <= len(asking) < RUNS
        assert len(json.dumps(news)) < 1_200_000
        seen |= {each["run_id"] for each in asking}
    assert len(seen) == RUNS


def test_notification_is_deduplicated_within_its_own_job(db: Database) -> None:
    run, _, _ = db.running_run()
    db.rows(
        "insert into notifications (user_id, type, title, message, metadata)"
        " select %s, 'job_started', 't', 'm', jsonb_build_object('job_id', gen_random_uuid())"
        " from generate_series(1, 20000)", run["user_id"],
    )  # fmt: skip
    db.rows("vacuum analyze notifications")
    notices = json.dumps([notice("job_started", run["job_id"])])
    call = "training_notify(r, %s) from training_runs r where r.id = %s"
    pages = max(db.pages(call, notices, run["id"]) for _ in range(3))
    print(f"{pages} pages")
    assert pages < 100
    mine = "select count(*) from notifications where metadata->>'job_id' = %s"
    assert db.row(mine, str(run["job_id"]))["count"] == 1


def test_malformed_notifications_of_a_user_break_nothing(db: Database) -> None:
    user = db.user()
    for odd in ({"job_id": "x" * MEGABYTE}, {"job_id": [1]}, [], {"job_id": None}):
        db.rows(
            "insert into notifications (user_id, type, title, message, metadata)"
            " values (%s, 'job_queued', 't', 'm', %s)", user, json.dumps(odd),
        )  # fmt: skip


def test_launch_time_is_never_after_the_check_in(db: Database, database: str) -> None:
    run = db.claimed_run()
    token = uuid4().hex * 2
    assert db.begin(run, token)["may_launch"]
    with psycopg.connect(database) as trainer:
        # The check-in waits for the lock while the launch's answer is recorded.
        trainer.execute("select now()")
        assert db.call("record_launch", run["id"], run["lease_token"], "runpod", "ext")
        trainer.execute("select public.check_in_run(%s, 'ext', %s)", (token, str(uuid4())))
    seen = db.run(run["id"])
    assert seen["launched_at"] <= seen["checked_in_at"] <= seen["last_seen_at"]


def test_early_check_in_sets_the_launch_time(db: Database) -> None:
    run = db.claimed_run()
    token = uuid4().hex * 2
    assert db.begin(run, token)["may_launch"]
    assert check_in(db, token, "ext")["may_train"]
    assert db.call("record_launch", run["id"], run["lease_token"], "runpod", "ext")
    seen = db.run(run["id"])
    assert seen["launched_at"] <= seen["checked_in_at"]
