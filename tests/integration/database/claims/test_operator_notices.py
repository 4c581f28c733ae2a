"""Of several workers that see the same condition, one tells it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lora_worker.duties.operator_watch import conditions_of_queue
from tests.database.rows import Database
from tests.integration.database.claims.test_breakers import BASE, Crew, open_breaker
from tests.integration.database.money.test_budgets import job, price, set_terms


def claim(db: Database, key: str, again_seconds: int = 3600) -> bool:
    row = db.row("select claim_operator_notice(%s, %s) as answer", key, again_seconds)
    return bool(row["answer"])


def test_one_of_many_workers_claims_a_notice(db: Database, database: str) -> None:
    workers = [Database(database) for _ in range(6)]
    try:
        with ThreadPoolExecutor(len(workers)) as pool:
            assert sum(pool.map(lambda worker: claim(worker, "no_gpu here"), workers)) == 1
    finally:
        for worker in workers:
            worker.close()
    assert claim(db, "no_gpu elsewhere")


def test_notice_can_be_claimed_again_after_its_time(db: Database) -> None:
    assert claim(db, "k" * 400)
    assert not claim(db, "k" * 400)
    db.rows("update training_operator_notices set claimed_at = now() - interval '1 hour'")
    assert claim(db, "k" * 400)
    assert not claim(db, "", 3600)
    assert not claim(db, "other", 0)


def test_old_claims_are_forgotten(db: Database) -> None:
    assert claim(db, "old")
    db.rows("update training_operator_notices set claimed_at = now() - interval '31 days'")
    assert claim(db, "new")
    assert [row["key"] for row in db.rows("select key from training_operator_notices where key in ('old', 'new')")] == [
        "new"
    ]


def told(db: Database) -> dict[str, str]:
    """What operators are told of the queue as it is: each kind with its text."""
    health: Any = db.call("queue_health")
    return {str(condition.notice.kind): condition.notice.body for condition in conditions_of_queue(health)}


def test_open_breaker_is_a_condition(db: Database) -> None:
    crew = Crew(db)
    assert told(db) == {}
    open_breaker(crew)
    assert crew.held()
    assert f"Held jobs: 1. For 2 users the base model {BASE} failed (child_crashed)." in told(db)["jobs_held"]


def test_endpoint_without_a_gpu_is_a_condition(db: Database) -> None:
    db.call("note_endpoint", "runpod", "https://here", "unknown", "RunPod has no free GPU of this kind now")
    assert told(db) == {"no_gpu": "https://here: RunPod has no free GPU of this kind now"}


def test_used_budget_is_a_condition(db: Database) -> None:
    set_terms(db)
    first = job(db)
    job(db)
    set_terms(db, max_cost_per_day=1.5 * price(db, first))
    assert len(db.claim(max_jobs=2)) == 1
    assert told(db)["budget_reached"].startswith("Jobs that wait for the day's budget for all trainings: 1.")
    job(db)
    set_terms(db, max_cost_per_user_per_day=0.01)
    db.rows("update training_holds set held_until = now()")
    db.claim(max_jobs=5)
    assert "Jobs that wait for its user's budget for a day: 2." in told(db)["budget_reached"]
