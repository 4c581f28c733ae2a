"""The endpoint of a launch is stored before its POST, and used to poll, cancel and close it."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from tests.database.rows import Database, Row

HERE, THERE = "https://api.runpod.ai/v2/here", "https://api.runpod.ai/v2/there"


def record(db: Database, run: Row, external_job_id: str, endpoint: str) -> Any:
    return db.call("record_launch", run["id"], run["lease_token"], "runpod", external_job_id, endpoint)


def endpoints(db: Database, run: Row) -> dict[str | None, str]:
    """The run's launches: the endpoint of each, by its id."""
    rows = db.rows("select external_job_id, endpoint from training_launches where run_id = %s", run["id"])
    return {row["external_job_id"]: row["endpoint"] for row in rows}


def renewed(db: Database, run: Row) -> Row:
    (news,) = db.call("renew_training_runs", [{"run_id": run["id"], "lease_token": run["lease_token"]}], 60)
    return dict(news)


def test_endpoint_is_stored_before_the_launch_is_sent(db: Database) -> None:
    run = db.claimed_run()
    assert db.begin(run, uuid4().hex * 2, HERE)["may_launch"]
    assert endpoints(db, run) == {None: HERE}
    assert db.run(run["id"])["endpoint"] == HERE
    db.expire(run["id"])
    (adopted,) = db.call("adopt_training_runs", "w2", 10, 60)
    assert (adopted["run"]["endpoint"], adopted["run"]["endpoints"]) == (HERE, [HERE])


def test_relaunch_elsewhere_keeps_the_endpoint_of_each_launch(db: Database) -> None:
    run, token = db.claimed_run(), uuid4().hex * 2
    db.begin(run, token, HERE)
    db.begin(run, token, THERE)
    assert record(db, run, "accepted-there", THERE)
    assert endpoints(db, run) == {None: HERE, "accepted-there": THERE}
    assert (renewed(db, run)["external_job_id"], renewed(db, run)["endpoint"]) == ("accepted-there", THERE)
    # The first launch was accepted after all, and its trainer checks in first.
    assert db.call("check_in_run", token, "accepted-here", str(uuid4()))["may_train"]
    assert endpoints(db, run) == {"accepted-here": HERE, "accepted-there": THERE}
    assert (renewed(db, run)["external_job_id"], renewed(db, run)["endpoint"]) == ("accepted-here", HERE)
    (stray,) = db.call("stray_launches", 10)
    assert (stray["external_job_id"], stray["endpoint"], stray["launcher"]) == ("accepted-there", THERE, "runpod")
    assert stray["endpoints"] == [THERE, HERE]


def test_launch_answer_corrects_the_assumed_endpoint(db: Database) -> None:
    run, token = db.claimed_run(), uuid4().hex * 2
    db.begin(run, token, HERE)
    db.begin(run, token, THERE)
    assert db.call("check_in_run", token, "accepted-here", str(uuid4()))["may_train"]
    assert renewed(db, run)["endpoint"] == THERE
    assert record(db, run, "accepted-here", HERE)
    assert renewed(db, run)["endpoint"] == HERE
    assert endpoints(db, run)["accepted-here"] == HERE


def test_queue_health_counts_launches_by_endpoint(db: Database) -> None:
    run, token = db.claimed_run(), uuid4().hex * 2
    db.begin(run, token, HERE)
    db.begin(run, token, THERE)
    record(db, run, "accepted-there", THERE)
    found = {row["endpoint"]: (row["launches"], row["without_run"]) for row in db.call("queue_health")["endpoints"]}
    # A launch without an id counts only where its run is now: it has gone on from the other endpoint.
    assert found == {THERE: (1, 0)}
    db.settle(db.run(run["id"]), "queued", launcher_ended=False)
    found = {row["endpoint"]: (row["launches"], row["without_run"]) for row in db.call("queue_health")["endpoints"]}
    assert found == {THERE: (1, 1)}
