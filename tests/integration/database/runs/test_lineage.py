"""A model's version and parent are decided once, in the transaction that inserts it, despite concurrent settling."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from tests.database.rows import Database, Row


def running(db: Database, count: int = 1, user: UUID | None = None) -> list[Row]:
    """Runs of as many jobs on one dataset."""
    db.jobs(count, user)
    return [assignment["run"] for assignment in db.claim(max_jobs=count)]


def model(db: Database, run: Row) -> tuple[str, UUID | None]:
    row = db.row("select version, parent_model_id from model_artifacts where id = %s", run["id"])
    return row["version"], row["parent_model_id"]


def test_each_model_is_the_next_version_of_its_predecessor(db: Database) -> None:
    runs = running(db, 3)
    assert [db.settle(run) for run in runs] == ["completed"] * 3
    versions = [("1.0.0", None), ("1.1.0", UUID(runs[0]["id"])), ("1.2.0", UUID(runs[1]["id"]))]
    assert [model(db, run) for run in runs] == versions
    # Settling again, as after a lost answer, changes nothing and adds no version.
    assert db.settle(runs[0]) == "completed"
    assert [model(db, run) for run in runs] == versions


def test_deleted_model_is_never_a_parent(db: Database) -> None:
    first, second, third = running(db, 3)
    db.settle(first)
    db.settle(second)
    db.rows("update model_artifacts set deleted_at = now() where id = %s", second["id"])
    db.settle(third)
    assert model(db, third) == ("1.1.0", UUID(first["id"]))


def test_another_dataset_or_user_starts_a_new_chain(db: Database) -> None:
    user = db.user()
    (first,), (second,), (third,) = running(db, 1, user), running(db, 1, user), running(db, 1)
    for run in (first, second, third):
        db.settle(run)
        assert model(db, run) == ("1.0.0", None)


def test_highest_version_is_the_parent_malformed_ones_come_last(db: Database) -> None:
    runs = running(db, 4)
    db.settle(runs[0])
    db.rows("update model_artifacts set version = 'final'")
    db.settle(runs[1])
    assert model(db, runs[1]) == ("1.0.0", UUID(runs[0]["id"]))
    db.rows("update model_artifacts set version = '2.10.3' where id = %s", runs[1]["id"])
    for run, expected in zip(runs[2:], ("2.11.0", "2.12.0"), strict=True):
        db.settle(run)
        assert model(db, run)[0] == expected
    assert model(db, runs[3])[1] == UUID(runs[2]["id"])


def test_concurrent_settling_gives_each_model_its_own_version(db: Database, database: str) -> None:
    runs = running(db, 16)

    def settle(run: Row) -> str | None:
        own = Database(database)
        try:
            return own.settle(run)
        finally:
            own.close()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(settle, runs)) == {"completed"}
    made = {UUID(run["id"]): model(db, run) for run in runs}
    by_version = sorted(made, key=lambda artifact: int(made[artifact][0].split(".")[1]))
    assert [made[artifact][0] for artifact in by_version] == [f"1.{n}.0" for n in range(16)]
    assert [made[artifact][1] for artifact in by_version] == [None, *by_version[:-1]]
