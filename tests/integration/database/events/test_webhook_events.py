"""A change of a job's status leaves an event, which is claimed, delivered in order, tried again and replayed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from tests.database.rows import Database, Row

HOOK, OTHER = "hooks.example.com-01234567", "hooks.example.org-89abcdef"
DELIVERED = {"delivered": True, "gone": False, "status": 200, "problem": None, "retry_after_seconds": None}
REFUSED = {"delivered": False, "gone": False, "status": 500, "problem": "it answered 500", "retry_after_seconds": None}
GONE = {"delivered": False, "gone": True, "status": 410, "problem": "it answered 410", "retry_after_seconds": None}
WAITS = [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400]


def claim(db: Database, *endpoints: str, most: int = 10) -> list[Row]:
    return list(db.call("claim_webhook_deliveries", list(endpoints or [HOOK]), most, 60))


def note(db: Database, delivery: Row, outcome: dict[str, Any]) -> bool:
    return bool(
        db.call("note_webhook_delivery", delivery["event"], delivery["endpoint"], delivery["lease_token"], outcome)
    )


def types(db: Database) -> list[str]:
    return [row["type"] for row in db.rows("select type from training_webhook_events order by id")]


def told(db: Database) -> list[dict[str, Any]]:
    return [json.loads(row["body"]) for row in db.rows("select body from training_webhook_events order by id")]


@pytest.fixture
def hooked(db: Database) -> Database:
    """A database that knows an endpoint."""
    assert claim(db) == []
    return db


def test_without_an_endpoint_no_event_is_kept(db: Database) -> None:
    db.settle(db.running_run()[0])
    assert types(db) == []


def test_each_change_of_a_status_leaves_its_event(hooked: Database) -> None:
    run, _, _ = hooked.running_run()
    hooked.settle(run, "queued", error_code="gpu_lost")
    hooked.rows("update training_runs set next_attempt_at = now()")
    hooked.rows("update training_jobs set status = 'cancelled' where id = %s", run["job_id"])
    assert types(hooked) == ["job.started", "job.retrying", "job.cancelled"]
    started, retrying, _ = told(hooked)
    assert started["data"] == {
        "job_id": str(run["job_id"]), "user_id": str(run["user_id"]), "run_id": str(run["id"]), "attempt": 1,
        "status": "running", "error_code": None, "model_id": None, "cost_usd": started["data"]["cost_usd"],
    }  # fmt: skip
    assert started["timestamp"].endswith("Z")
    assert (retrying["data"]["status"], retrying["data"]["error_code"]) == ("queued", "gpu_lost")


def test_completed_event_names_the_model_and_its_cost(hooked: Database) -> None:
    run, _, _ = hooked.running_run()
    hooked.settle(run)
    _, completed = told(hooked)
    assert completed["data"]["model_id"] == str(run["id"])
    assert completed["data"]["cost_usd"] > 0


def test_failed_event_holds_no_text_of_the_error(hooked: Database) -> None:
    run, _, _ = hooked.running_run()
    hooked.settle(run, "failed", error_code="bad_rows", error_message="Line 3: zebra.")
    _, failed = told(hooked)
    assert failed["data"]["error_code"] == "bad_rows"
    assert "zebra" not in json.dumps(failed)


def test_put_back_job_is_not_told_as_a_retry(hooked: Database) -> None:
    run = hooked.claimed_run()
    hooked.rows("update training_jobs set status = 'queued' where id = %s", run["job_id"])
    assert types(hooked) == []


def test_run_that_left_a_place_without_a_gpu_is_not_told_as_a_retry(hooked: Database) -> None:
    run = hooked.claimed_run()
    hooked.settle(run, "queued", error_code="no_gpu_there", fault=None)
    assert types(hooked) == []


def test_event_is_rolled_back_with_its_change(hooked: Database) -> None:
    run, _, _ = hooked.running_run()
    with hooked.connection.transaction(force_rollback=True):
        hooked.settle(run)
        assert types(hooked) == ["job.started", "job.completed"]
    assert types(hooked) == ["job.started"]


def test_later_event_of_a_job_waits_for_the_earlier_one(hooked: Database) -> None:
    run, _, _ = hooked.running_run()
    hooked.settle(run)
    (first,) = claim(hooked)
    assert first["type"] == "job.started"
    assert claim(hooked) == []
    assert note(hooked, first, REFUSED)
    hooked.rows("update training_webhook_deliveries set next_at = now()")
    (again,) = claim(hooked)
    assert (again["event"], again["body"], again["attempt"]) == (first["event"], first["body"], 2)
    assert note(hooked, again, DELIVERED)
    (second,) = claim(hooked)
    assert second["type"] == "job.completed"


def test_a_failing_job_or_endpoint_holds_up_no_other(hooked: Database) -> None:
    assert claim(hooked, HOOK, OTHER) == []
    hooked.running_run()
    hooked.running_run()
    due = claim(hooked, HOOK, OTHER)
    assert [delivery["endpoint"] for delivery in due].count(OTHER) == 2
    assert len({delivery["event"] for delivery in due}) == 2


def test_delivery_is_given_to_one_worker_at_a_time(hooked: Database, database: str) -> None:
    for _ in range(3):
        hooked.running_run()
    workers = [Database(database) for _ in range(4)]
    try:
        with ThreadPoolExecutor(len(workers)) as pool:
            taken = [delivery["event"] for due in pool.map(claim, workers) for delivery in due]
    finally:
        for worker in workers:
            worker.close()
    assert len(taken) == len(set(taken)) == 3


def test_worker_that_died_leaves_its_delivery_to_the_next(hooked: Database) -> None:
    hooked.running_run()
    (lost,) = claim(hooked)
    hooked.rows("update training_webhook_deliveries set lease_expires_at = now()")
    (taken,) = claim(hooked)
    assert taken["event"] == lost["event"]
    assert not note(hooked, lost, REFUSED)
    assert note(hooked, taken, DELIVERED)
    assert not note(hooked, taken, DELIVERED)


def test_failed_delivery_follows_the_recommended_schedule(hooked: Database) -> None:
    hooked.running_run()
    waited = []
    for _ in range(10):
        (delivery,) = claim(hooked)
        note(hooked, delivery, REFUSED)
        row = hooked.row("select state, extract(epoch from next_at - now()) as wait from training_webhook_deliveries")
        waited.append(float(row["wait"]))
        hooked.rows("update training_webhook_deliveries set next_at = now()")
    for wait, least in zip(waited, WAITS, strict=False):
        assert least - 5 <= wait <= least * 1.1
    assert row["state"] == "given_up"
    assert claim(hooked) == []


def test_longer_wait_that_the_endpoint_asks_for_is_kept(hooked: Database) -> None:
    hooked.running_run()
    (delivery,) = claim(hooked)
    note(hooked, delivery, {**REFUSED, "status": 429, "retry_after_seconds": 900})
    row = hooked.row("select extract(epoch from next_at - now()) as wait from training_webhook_deliveries")
    assert 890 <= row["wait"] <= 900


def test_delivery_that_ends_each_worker_is_given_up(hooked: Database) -> None:
    hooked.running_run()
    for _ in range(10):
        assert len(claim(hooked)) == 1
        hooked.rows("update training_webhook_deliveries set lease_expires_at = now()")
    assert claim(hooked) == []
    assert hooked.row("select state from training_webhook_deliveries")["state"] == "given_up"


def test_endpoint_that_is_gone_gets_nothing_until_it_is_enabled(hooked: Database) -> None:
    run, _, _ = hooked.running_run()
    hooked.settle(run)
    (delivery,) = claim(hooked)
    note(hooked, delivery, GONE)
    hooked.running_run()
    assert claim(hooked) == []
    (state,) = hooked.call("training_webhook_state")
    assert (state["is_enabled"], state["given_up"], state["waiting"]) == (False, 2, 0)
    assert len(state["failures"]) == 2
    assert hooked.call("enable_webhook_endpoint", HOOK)
    assert not hooked.call("enable_webhook_endpoint", HOOK)
    assert hooked.call("replay_webhook_events", {"failed": True}) == 2
    assert [delivery["type"] for delivery in claim(hooked)] == ["job.started"]


def test_replay_sends_the_same_event_again(hooked: Database) -> None:
    run, _, _ = hooked.running_run()
    hooked.settle(run)
    sent = []
    while due := claim(hooked):
        sent += due
        assert all(note(hooked, delivery, DELIVERED) for delivery in due)
    assert hooked.call("replay_webhook_events", {"failed": True}) == 0
    assert hooked.call("replay_webhook_events", {"event": sent[1]["event"], "endpoint": "none"}) == 0
    assert hooked.call("replay_webhook_events", {"event": sent[1]["event"]}) == 1
    (again,) = claim(hooked)
    assert (again["event"], again["body"], again["attempt"]) == (sent[1]["event"], sent[1]["body"], 1)
    # What is under way is not reset, and an endpoint that came later gets what it missed.
    assert claim(hooked, OTHER) == []
    assert hooked.call("replay_webhook_events", {"since": "2026-01-01T00:00:00Z"}) == 3
    assert [delivery["type"] for delivery in claim(hooked, OTHER)] == ["job.started"]


def test_endpoint_that_no_worker_has_gets_no_new_events(hooked: Database) -> None:
    hooked.rows("update training_webhook_endpoints set seen_at = now() - interval '8 days'")
    hooked.running_run()
    assert types(hooked) == []


def test_old_events_are_removed(hooked: Database) -> None:
    hooked.running_run()
    hooked.rows("update training_webhook_events set occurred_at = now() - interval '31 days'")
    assert claim(hooked) == []
    assert types(hooked) == []
    assert hooked.rows("select from training_webhook_deliveries") == []


def test_cost_does_not_grow_with_the_number_of_delivered_events(hooked: Database) -> None:
    hooked.running_run()
    hooked.rows(
        "with made as (insert into training_webhook_events (event, type, job_id, body)"
        " select 'e' || n, 'job.started', gen_random_uuid(), repeat('x', 500) from generate_series(1, 10000) n"
        " returning id, job_id)"
        " insert into training_webhook_deliveries (event_id, endpoint, job_id, state)"
        " select id, %s, job_id, 'delivered' from made", HOOK,
    )  # fmt: skip
    hooked.rows("analyze training_webhook_events, training_webhook_deliveries")
    hooked.call("training_webhook_state")  # the first call of a connection reads the catalog
    assert hooked.pages("training_webhook_state()") < 50
    assert hooked.pages("claim_webhook_deliveries(%s, 10, 60)", json.dumps([HOOK])) < 300


def test_two_notes_of_an_endpoint_that_is_gone_do_not_deadlock(hooked: Database, database: str) -> None:
    hooked.running_run()
    hooked.running_run()
    first, second = claim(hooked)
    other = Database(database)
    pid = other.row("select pg_backend_pid() as pid")["pid"]
    try:
        with ThreadPoolExecutor(1) as pool, hooked.connection.transaction():
            # Another worker's note is about to take the same endpoint, with its own delivery.
            hooked.rows("select from training_webhook_endpoints where name = %s for no key update", HOOK)
            waiting = pool.submit(note, other, second, GONE)
            while not hooked.row("select pg_backend_pid() = any (pg_blocking_pids(%s)) as waits", pid)["waits"]:
                assert not waiting.done()
            assert note(hooked, first, GONE)
            hooked.rows("select from training_webhook_deliveries for update nowait")
        assert waiting.result() is False, "the first note has given it up"
    finally:
        other.close()


def test_events_are_erased_with_their_user(hooked: Database) -> None:
    run, _, _ = hooked.running_run()
    hooked.settle(run)
    assert hooked.call("erase_training_user", run["user_id"])["erased"]
    assert types(hooked) == []


def test_bounds_of_a_claim_are_kept(db: Database) -> None:
    for endpoints, most in (([HOOK] * 11, 1), ([HOOK], 101)):
        with pytest.raises(Exception, match="at most 10 endpoints"):
            claim(db, *endpoints, most=most)
    long = f"{uuid4()}" * 5
    assert claim(db, long) == []
    assert db.row("select length(name) as characters from training_webhook_endpoints")["characters"] == 100
