"""Of several workers that see the same condition, one tells it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.database.rows import Database


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
