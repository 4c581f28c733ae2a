"""A claim reads in proportion to what it claims: ended jobs, waiting users and dead rows cost nothing."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.application.pipeline import Pipeline
from tests.database.rows import Database

FEW = 500
"""The most pages that a claim may read. One job takes about 200; visiting a thousand rows takes over a thousand."""


def claim(db: Database, max_jobs: int = 1, max_per_user: int | None = 3) -> int:
    """Claim jobs; returns how many pages were read."""
    return db.pages("claim_training_jobs('w', %s, 60, %s)", max_jobs, max_per_user)


def queue(db: Database, user: UUID, table: str, count: int, status: str) -> None:
    """Queue many jobs of one user, created a day ago and a second apart."""
    columns = {
        "training_jobs": "dataset_id, preset_id, hyperparameters, gpu_config, total_epochs, estimated_total_cost",
        "pipeline_training_jobs": "dataset_id, job_name, engine_id, engine_name",
    }[table]
    values = {"training_jobs": "'a', '{}', '{}', 1, 1", "pipeline_training_jobs": "'a', 'a', 'a'"}[table]
    db.rows(
        f"insert into {table} (user_id, status, created_at, {columns})"
        f" select %s, %s, now() - interval '1 day' + n * interval '1 second', %s, {values}"
        " from generate_series(1, %s) n", user, status, db.dataset(user), count,
    )  # fmt: skip


TABLES = [("training_jobs", "queued"), ("pipeline_training_jobs", "pending")]


@pytest.mark.parametrize(("table", "waits"), TABLES)
def test_claim_cost_does_not_grow_with_the_number_of_ended_jobs(
    db: Database, pipeline: Pipeline, table: str, waits: str
) -> None:
    pages = []
    for count in (3_000, 47_000):
        user = db.user()
        queue(db, user, table, count, "completed")
        queue(db, user, table, 5, waits)
        db.rows("analyze")
        assert db.claim()[0]["run"]["queue"] == table
        pages.append(claim(db))
    print(f"{pages} pages")
    assert max(pages) < FEW


@pytest.mark.parametrize(("table", "waits"), TABLES)
def test_user_at_the_limit_with_50000_jobs_does_not_slow_other_claims(
    db: Database, pipeline: Pipeline, table: str, waits: str
) -> None:
    greedy, other = db.user(), db.user()
    queue(db, greedy, table, 50_000, waits)
    queue(db, other, "training_jobs", 20, "queued")
    db.rows("update training_jobs set created_at = now() where user_id = %s", other)
    # Users who came later are served, and the one with many jobs up to the limit.
    assert [a["run"]["user_id"] for a in db.claim(max_jobs=3, max_per_user=3)] == [str(greedy)] * 3
    beside, within = claim(db), claim(db, max_per_user=20)
    print(f"{beside} pages beside a user at the limit, {within} for one below it")
    owners = db.rows("select user_id from training_runs order by created_at")
    assert [row["user_id"] for row in owners[3:]] == [other, greedy]
    assert max(beside, within) < FEW


def test_ended_jobs_kept_by_an_open_transaction_do_not_slow_claims(db: Database, database: str) -> None:
    user = db.user()
    with psycopg.connect(database) as reader:
        queue(db, user, "training_jobs", 30_000, "queued")
        reader.execute("set transaction isolation level repeatable read")
        reader.execute("select count(*) from training_jobs")
        db.rows("update training_jobs set status = 'completed'")
        queue(db, user, "training_jobs", 20, "queued")
        db.rows("update training_jobs set created_at = now() where status = 'queued'")
        first, *later = [claim(db, max_per_user=20) for _ in range(6)]
    print(f"{first} pages at first, then {later}")
    assert db.row("select count(*) from training_runs")["count"] == 6
    # The index still has all its dead rows: the first claim marked them, so that later ones skip them.
    assert first > FEW
    assert max(later) < FEW


def test_batch_claim_reads_as_much_for_each_job_as_a_single_claim(db: Database) -> None:
    db.jobs(1100)
    db.rows("analyze")
    claim(db, 1, None)
    single = claim(db, 1, None)
    (small, large) = (claim(db, count, None) / count for count in (50, 1000))
    print(f"pages a job: {single} alone, {small:.0f} of 50, {large:.0f} of 1,000")
    assert large <= 1.5 * small
    assert large <= 1.5 * single
    assert db.row("select count(*) from training_runs")["count"] == 1052


def test_limit_for_a_user_holds_within_a_batch_claim(db: Database, pipeline: Pipeline) -> None:
    users = [db.user() for _ in range(3)]
    for user in users:
        queue(db, user, "training_jobs", 40, "queued")
        queue(db, user, "pipeline_training_jobs", 40, "pending")
    claimed = db.claim(max_jobs=100, max_per_user=30)
    assert len(claimed) == 90
    counts = db.rows("select count(*) from training_runs group by user_id")
    assert [row["count"] for row in counts] == [30] * 3
    assert db.claim(max_jobs=100, max_per_user=30) == []


def known(db: Database) -> list[dict[str, Any]]:
    return db.rows("select user_id from training_waiting_users order by user_id")


def test_index_of_waiting_users_drops_and_restores_users(db: Database) -> None:
    (job,) = db.jobs(1)
    assert len(known(db)) == 1
    db.rows("update training_jobs set status = 'cancelled'")
    assert db.claim() == []
    assert known(db) == []
    db.rows("update training_jobs set status = 'queued'")
    assert db.claim()[0]["job"]["id"] == str(job)


def test_job_older_than_all_waiting_jobs_is_claimed(db: Database) -> None:
    user = db.user()
    db.jobs(2, user)
    assert len(db.claim()) == 1
    (old,) = db.jobs(1, user)
    db.rows("update training_jobs set created_at = '-infinity' where id = %s", old)
    assert db.claim()[0]["job"]["id"] == str(old)
    (unknown,) = db.jobs(1, user)
    db.rows("update training_jobs set created_at = null where id = %s", unknown)
    assert [a["job"]["id"] for a in db.claim(max_jobs=9)][-1] == str(unknown)


def test_job_inserted_while_its_user_is_removed_is_claimed(db: Database, database: str) -> None:
    (first,) = db.jobs(1)
    user = db.job(first)["user_id"]
    db.rows("update training_jobs set status = 'cancelled'")
    with psycopg.connect(database) as application:
        # Inserted but not committed, so no claim can see it.
        application.execute(
            "insert into training_jobs (user_id, dataset_id, preset_id, hyperparameters, gpu_config, total_epochs,"
            " estimated_total_cost) select user_id, dataset_id, 'fast', '{}', '{}', 1, 1 from training_jobs"
        )
        assert db.claim() == []
        application.commit()
    assert db.claim()[0]["job"]["user_id"] == str(user)


@pytest.mark.parametrize(("table", "waits"), TABLES)
def test_number_of_waiting_jobs_for_a_user_is_limited(db: Database, pipeline: Pipeline, table: str, waits: str) -> None:
    db.call("publish_training_terms", {"max_queued_per_user": 5}, "w1")
    user, other = db.user(), db.user()
    dataset = db.dataset(user)
    columns = {
        "training_jobs": "preset_id, hyperparameters, gpu_config, total_epochs, estimated_total_cost",
        "pipeline_training_jobs": "job_name, engine_id, engine_name",
    }[table]
    values = {"training_jobs": "'a', '{}', '{}', 1, 1", "pipeline_training_jobs": "'a', 'a', 'a'"}[table]

    def add(count: int, role: str = "authenticated") -> None:
        with db.connection.transaction():
            db.rows(f"set local role {role}")
            db.rows("select set_config('request.jwt.claims', %s, true)", json.dumps({"sub": str(user)}))
            db.rows(
                f"insert into {table} (user_id, dataset_id, {columns}) select %s, %s, {values}"
                " from generate_series(1, %s)", user, dataset, count,
            )  # fmt: skip

    with pytest.raises(psycopg.Error, match="5 of your jobs wait already, and no more may") as refused:
        add(6)
    assert refused.value.sqlstate == "PT429"
    add(3)
    add(2)
    with pytest.raises(psycopg.Error, match="5 of your jobs wait already"):
        add(1)
    queue(db, other, table, 9, waits)
    add(1, "service_role")
    db.rows(f"delete from {table} where id in (select id from {table} where user_id = %s limit 2)", user)
    add(1)


def test_job_returned_to_the_newer_queue_counts_against_the_limit(db: Database, pipeline: Pipeline) -> None:
    db.call("publish_training_terms", {"max_queued_per_user": 2}, "w1")
    user = db.user()
    jobs = [pipeline.queue(user_id=user) for _ in range(2)]
    cancelled = pipeline.queue(user_id=user, status="cancelled")
    with db.connection.transaction():
        db.rows("set local role authenticated")
        db.rows("select set_config('request.jwt.claims', %s, true)", json.dumps({"sub": str(user)}))
        db.rows("update pipeline_training_jobs set status = 'pending' where id = %s", jobs[0])
        with pytest.raises(psycopg.Error, match="2 of your jobs wait already"):
            db.rows("update pipeline_training_jobs set status = 'pending' where id = %s", cancelled)


def test_queue_table_created_after_migrating_is_served(db: Database) -> None:
    pipeline = Pipeline(db)
    pipeline.create()
    user = db.user()
    job = pipeline.queue(user_id=user, dataset_id=db.dataset(user))
    assert db.claim()[0]["job"]["id"] == str(job)
