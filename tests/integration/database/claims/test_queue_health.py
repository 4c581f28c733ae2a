"""The health of the queue gives each waiting job's reason."""

from __future__ import annotations

import pytest

from tests.database.rows import Database


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
    assert reasons() == ["a free worker slot", "its user's live run to end, since a user may have no more", "retry"]
    # One live run does not make a job wait where two are allowed, or any number.
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
