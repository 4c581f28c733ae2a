"""Oversized and malformed rows are refused when inserted; existing ones fail only their own job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from psycopg.types.json import Json

from lora_worker.database.calls import DatabaseCalls
from lora_worker.database.rows import Lease, parse_assignment
from lora_worker.money.pricing import load_prices
from lora_worker.money.terms import make_terms
from sandbox.errors import SandboxError
from sandbox.supabase.project import Project
from tests.application.pipeline import Pipeline
from tests.application.user import User
from tests.database.rows import Database, Row
from tests.scripted import make_services

MEGABYTE = 1_000_000
POISON = {
    "nested 1,500 deep": '{"a":' * 1500 + "1" + "}" * 1500,
    "an array nested 1,500 deep": '{"a":' + "[" * 1500 + "]" * 1500 + "}",
    "a number of 5,000 digits": '{"epochs": ' + "9" * 5000 + "}",
    "more than a float holds": '{"epochs": 1e400}',
    "numbers that are long as text alone": '{"a": [' + ", ".join(["1e131071"] * 1000) + "]}",
    "zeros that are long as text alone": '{"a": [' + ", ".join(["0e-16383"] * 1000) + "]}",
    "20 MB that are stored as 200 KB": json.dumps({"a": "x" * 20 * MEGABYTE}),
    "many small values": json.dumps({"a": list(range(5000))}),
}
LARGEST_ANSWER = 50_000


def as_text(db: Database, function: str, *arguments: Any) -> str:
    """The answer of a database function as text, before it is parsed."""
    marks = ", ".join(["%s"] * len(arguments))
    return str(db.row(f"select public.{function}({marks})::text as answer", *arguments)["answer"])


def poison(db: Database, column: str, value: str, job_id: UUID) -> None:
    """Write values beyond every limit, as rows from before the limits may have."""
    db.rows(f"update training_jobs set {column} = %s::jsonb where id = %s", value, job_id)


def claimed_beside_honest(db: Database, jobs: list[UUID]) -> Row:
    """Claim three jobs; returns the middle one's assignment, and asserts that its neighbours are claimed normally."""
    text = as_text(db, "claim_training_jobs", "w1", 9, 60, None)
    assert len(text) < LARGEST_ANSWER
    answer = json.loads(text)
    assert [a["job"]["id"] for a in answer] == [str(job) for job in jobs]
    read = [parse_assignment(row) for row in answer]
    assert [each.unreadable is None for each in read] == [True, False, True]
    assert read[1].unreadable is not None
    assert read[1].unreadable.startswith("The job can't be read: ")
    return dict(answer[1])


@pytest.mark.parametrize("column", ["hyperparameters", "gpu_config"])
@pytest.mark.parametrize("value", POISON.values(), ids=POISON.keys())
def test_unreadable_job_is_claimed_with_a_sentence_beside_good_ones(db: Database, column: str, value: str) -> None:
    jobs = db.jobs(3)
    poison(db, column, value, jobs[1])
    poisoned = claimed_beside_honest(db, jobs)
    assert poisoned["unreadable"].startswith(f"{column} ")
    assert poisoned["job"][column] is None


def test_runs_of_a_spoiled_job_row_are_renewed_adopted_settled(db: Database) -> None:
    runs = [db.running_run()[0] for _ in range(2)]
    for column in ("hyperparameters", "gpu_config", "current_metrics"):
        poison(db, column, POISON["numbers that are long as text alone"], runs[0]["job_id"])
    leases = json.dumps([{"run_id": str(run["id"]), "lease_token": str(run["lease_token"])} for run in runs])
    assert all(news["held"] for news in json.loads(as_text(db, "renew_training_runs", leases, 60)))
    reports = [{"run_id": str(r["id"]), "lease_token": str(r["lease_token"]), "job": {"progress": 5}} for r in runs]
    assert all(answer["applied"] for answer in db.call("record_progress", reports))
    assert len(as_text(db, "queue_health")) < LARGEST_ANSWER
    for run in runs:
        db.expire(run["id"])
    text = as_text(db, "adopt_training_runs", "w2", 9, 60)
    assert len(text) < LARGEST_ANSWER
    adopted = [parse_assignment(row) for row in json.loads(text)]
    # Each still has the values that its trainer was sent.
    assert [each.unreadable for each in adopted] == [None, None]
    for each in adopted:
        run = db.run(each.run.id)
        assert db.settle(run, "failed") == "failed"


def test_renewal_reads_only_the_status_of_a_job(db: Database) -> None:
    run, _, _ = db.running_run()
    db.rows("alter table training_jobs alter hyperparameters set storage external")
    poison(db, "hyperparameters", POISON["20 MB that are stored as 200 KB"], run["job_id"])
    leases = json.dumps([{"run_id": str(run["id"]), "lease_token": str(run["lease_token"])}])
    # The row's value is stored in 2,500 pages.
    pages = db.pages("renew_training_runs(%s, 60)", leases)
    print(f"{pages} pages")
    assert pages < 500


def test_claim_returns_only_the_dataset_columns_it_needs(db: Database) -> None:
    jobs = db.jobs(1)
    many = POISON["20 MB that are stored as 200 KB"]
    deep = POISON["nested 1,500 deep"]
    db.rows(
        "update datasets set sample_data = %s, validation_errors = %s, description = %s", many, deep, "x" * MEGABYTE
    )
    text = as_text(db, "claim_training_jobs", "w1", 9, 60, None)
    assert len(text) < LARGEST_ANSWER
    (answer,) = json.loads(text)
    assert answer["job"]["id"] == str(jobs[0])
    assert parse_assignment(answer).unreadable is None
    db.rows("update datasets set status = 'validating'")
    text = as_text(db, "claim_dataset", "w1", 60)
    assert len(text) < LARGEST_ANSWER


def test_too_long_dataset_path_fails_with_a_sentence(db: Database) -> None:
    db.jobs(1)
    db.rows("update datasets set storage_path = %s", "x" * 2000)
    (answer,) = json.loads(as_text(db, "claim_training_jobs", "w1", 9, 60, None))
    db.rows("update datasets set status = 'validating'")
    sentence = parse_assignment(answer).unreadable
    assert sentence is not None
    assert "storage_path is longer than 1024 bytes" in sentence
    claim = json.loads(as_text(db, "claim_dataset", "w1", 60))
    assert claim["unreadable"] == "storage_path is longer than 1024 bytes"


@pytest.mark.parametrize(
    "column", ["gpu_type", "dataset_file_path", "dataset_name", "engine_features", "error_message"]
)
def test_long_texts_of_the_newer_queue_are_cut_when_read(db: Database, pipeline: Pipeline, column: str) -> None:
    user = db.user()
    jobs = [pipeline.queue(user_id=user, dataset_file_path="a") for _ in range(3)]
    value: Any = "x" * 20 * MEGABYTE
    db.rows(
        f"update pipeline_training_jobs set {column} = %s where id = %s",
        Json(value) if column == "engine_features" else value, jobs[1],
    )  # fmt: skip
    if column in {"gpu_type", "dataset_file_path"}:
        assert claimed_beside_honest(db, jobs)["unreadable"].startswith(f"{column} is longer than")
    else:
        assert len(as_text(db, "claim_training_jobs", "w1", 9, 60, None)) < LARGEST_ANSWER
    assert len(as_text(db, "queue_health")) < LARGEST_ANSWER


def as_user(db: Database, user: UUID, statement: str, *values: Any) -> None:
    with db.connection.transaction():
        db.rows("set local role authenticated")
        db.rows("select set_config('request.jwt.claims', %s, true)", json.dumps({"sub": str(user)}))
        db.rows(statement, *values)


_INSERT = (
    "insert into training_jobs (user_id, dataset_id, preset_id, hyperparameters, gpu_config, total_epochs,"
    " estimated_total_cost) values (%s, %s, 'fast', %s::jsonb, %s::jsonb, 1, 1)"
)
HONEST = '{"epochs": 2, "learning_rate": 5e-5, "dropout": 0.1234567890123456, "note": "' + "x" * 2000 + '"}'


@pytest.mark.parametrize("column", ["hyperparameters", "gpu_config"])
@pytest.mark.parametrize("value", POISON.values(), ids=POISON.keys())
def test_user_cannot_insert_an_oversized_or_malformed_job(db: Database, column: str, value: str) -> None:
    user = db.user()
    values = {"hyperparameters": HONEST, "gpu_config": HONEST}
    as_user(db, user, _INSERT, user, db.dataset(user), *values.values())
    with pytest.raises(psycopg.Error, match="the row is larger" if len(value) > MEGABYTE else f"^{column} ") as refused:
        as_user(db, user, _INSERT, user, db.dataset(user), *{**values, column: value}.values())
    assert refused.value.sqlstate == "PT400"
    assert "epochs" not in str(refused.value)


def test_user_cannot_write_oversized_pipeline_rows_or_paths(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    job_id, dataset = pipeline.queue(user_id=user), db.dataset(user)
    long = "x" * 2000
    for statement, values in (
        ("update pipeline_training_jobs set gpu_type = %s where id = %s", (long, job_id)),
        ("update pipeline_training_jobs set dataset_file_path = %s where id = %s", (long, job_id)),
        ("update datasets set storage_path = %s where id = %s", (long, dataset)),
    ):
        with pytest.raises(psycopg.Error, match="is longer than") as refused:
            as_user(db, user, statement, *values)
        assert refused.value.sqlstate == "PT400"
    many = Json("x" * MEGABYTE)
    with pytest.raises(psycopg.Error, match="the row is larger than 256 KB"):
        as_user(
            db, user, "insert into pipeline_training_jobs (user_id, job_name, engine_id, engine_name, engine_features)"
            " values (%s, 'a', 'a', 'a', %s)", user, many,
        )  # fmt: skip


def test_existing_oversized_row_can_be_cancelled_and_changed(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    (job,) = db.jobs(1, user)
    newer = pipeline.queue(user_id=user, gpu_type="x" * 2000)
    poison(db, "hyperparameters", POISON["nested 1,500 deep"], job)
    as_user(db, user, "update training_jobs set status = 'cancelled' where id = %s", job)
    as_user(
        db, user, "update pipeline_training_jobs set status = 'cancelled', gpu_type = gpu_type where id = %s", newer
    )
    (left,) = db.rows("select status from training_jobs where id = %s", job)
    assert left["status"] == pipeline.job(newer)["status"] == "cancelled"


@pytest.mark.parametrize("value", POISON.values(), ids=POISON.keys())
def test_oversized_settings_get_no_estimate(db: Database, value: str) -> None:
    db.call("publish_training_terms", make_terms(make_services().settings, load_prices()).model_dump(mode="json"), "w")
    user = db.user()
    dataset = db.dataset(user)
    db.rows("update datasets set total_tokens = 1000, total_training_pairs = 10")
    assert db.call("estimate_training_cost", dataset, HONEST, "{}") is not None
    assert db.call("estimate_training_cost", dataset, value, "{}") is None
    assert db.call("estimate_training_cost", dataset, "{}", value) is None


async def test_two_workers_claim_good_and_unreadable_rows_through_rest(empty_supabase: Project) -> None:
    owner = UUID(empty_supabase.create_user(f"{uuid4().hex}@example.com"))
    db = Database(empty_supabase.database_url)
    jobs = db.jobs(len(POISON) + 1, owner)
    for job_id, value in zip(jobs, POISON.values(), strict=False):
        poison(db, "hyperparameters", value, job_id)
    db.close()
    key = empty_supabase.secret_key
    async with httpx.AsyncClient(timeout=60) as http:
        first, second = (
            # Leases are long, so that the second worker adopts none of the first one's runs on a slow machine.
            DatabaseCalls(empty_supabase.url, key, worker=name, lease_seconds=3600, http=http)
            for name in ("w1", "w2")
        )
        claimed = [*await first.claim(5, None), *await second.claim(99, None)]
        assert [each.run.job_id for each in claimed] == jobs
        assert [each.unreadable is None for each in claimed] == [False] * len(POISON) + [True]
        news = await first.renew([Lease(each.run.id, each.run.lease_token) for each in claimed])
        assert all(each.held for each in news)
        await first.release()
        # Live runs that other tests left in this project are adopted, too.
        adopted = {each.run.job_id for each in await second.adopt(99, ["runpod"])}
        assert adopted & set(jobs) == set(jobs[:5])


def test_user_reads_the_reason_for_a_refused_row_through_rest(supabase: Project, tmp_path: Path) -> None:
    user = User(supabase, tmp_path)
    with pytest.raises(SandboxError, match=r"HTTP 400.*hyperparameters is nested deeper than 8 levels"):
        user.queue(note=json.loads("[" * 9 + "1" + "]" * 9))
    user.close()
