"""Claims and outcomes of dataset validation in a real database, and the service against a real storage."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from lora_worker.database.calls import DatabaseCalls
from lora_worker.duties.validation import Validator
from lora_worker.observability.repeats import Repeats
from lora_worker.services import HeavySlots
from lora_worker.storage.objects import Storage
from sandbox.supabase.project import Project
from tests.corpus.builders import GOOD, META, lines, pair

OUTCOME = {
    "status": "ready",
    "total_training_pairs": 44,
    "total_tokens": 68_788,
    "avg_turns_per_conversation": 7.33,
    "avg_tokens_per_turn": 211.5,
    "validation_errors": None,
    "sample_data": [{"conversation_id": "a", "messages": []}],
    "error_message": None,
    "notice": {"type": "dataset_ready", "title": "Dataset Ready", "message": "m", "priority": "medium"},
}

Connection = psycopg.Connection[dict[str, Any]]


@pytest.fixture
def db(database: str) -> Iterator[Connection]:
    with psycopg.connect(database, autocommit=True, row_factory=dict_row) as connection:
        yield connection


def add_dataset(db: Connection, status: str = "validating", **columns: Any) -> str:
    user, dataset = str(uuid4()), str(uuid4())
    db.execute("insert into auth.users (id) values (%s)", [user])
    db.execute(
        "insert into public.datasets (id, user_id, name, status, storage_path, file_name, file_size, deleted_at)"
        " values (%s, %s, 'Calm money', %s, %s, 'f.jsonl', 1, %s)",
        [dataset, user, status, f"{user}/{dataset}/f.jsonl", columns.get("deleted_at")],
    )
    return dataset


def one(db: Connection, statement: str, *values: Any) -> Any:
    row = db.execute(statement, values).fetchone()
    assert row is not None
    return next(iter(row.values()))


def claim(db: Connection, worker: str = "w1") -> dict[str, Any] | None:
    return one(db, "select public.claim_dataset(%s, 60)", worker)


def claimed(db: Connection, worker: str = "w1") -> tuple[str, str]:
    found = claim(db, worker)
    assert found is not None
    return found["dataset"]["id"], found["lease_token"]


def settle(db: Connection, dataset: str, token: str, **changes: Any) -> bool:
    return bool(one(db, "select public.settle_dataset(%s, %s, %s)", dataset, token, Jsonb({**OUTCOME, **changes})))


def expire(db: Connection, dataset: str) -> None:
    db.execute("update public.dataset_validations set lease_expires_at = now() where dataset_id = %s", [dataset])


def row_of(db: Connection, dataset: str) -> dict[str, Any]:
    row = db.execute("select * from public.datasets where id = %s", [dataset]).fetchone()
    assert row is not None
    return row


def test_waiting_datasets_are_claimed_oldest_first(db: Connection) -> None:
    for status in ("uploading", "ready", "error"):
        add_dataset(db, status)
    add_dataset(db, deleted_at="2026-01-01")
    first, second = add_dataset(db), add_dataset(db)
    assert [claimed(db)[0], claimed(db)[0]] == [first, second]
    assert claim(db) is None


def test_each_dataset_is_claimed_by_one_of_eight_connections(db: Connection, database: str) -> None:
    waiting = {add_dataset(db) for _ in range(40)}

    async def work() -> list[str]:
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            taken, misses = [], 0
            # Another connection may lock a row first, so one empty answer does not mean that none is left.
            while misses < 10:
                row = await (await connection.execute("select public.claim_dataset('w', 60)")).fetchone()
                assert row is not None
                if row[0] is None:
                    misses += 1
                else:
                    taken.append(row[0]["dataset"]["id"])
            return taken

    async def race() -> list[list[str]]:
        return await asyncio.gather(*(work() for _ in range(8)))

    taken = [dataset for part in asyncio.run(race()) for dataset in part]
    assert len(taken) == len(set(taken))
    assert set(taken) == waiting


def test_expired_claim_is_taken_over_and_fences_its_old_holder(db: Connection) -> None:
    dataset = add_dataset(db)
    _, old = claimed(db)
    expire(db, dataset)
    again = claim(db, "w2")
    assert again is not None
    assert again["attempts"] == 2
    assert settle(db, dataset, old) is False
    assert row_of(db, dataset)["status"] == "validating"
    assert settle(db, dataset, again["lease_token"]) is True


def test_renewing_keeps_a_claim_unless_it_has_expired(db: Connection) -> None:
    dataset = add_dataset(db)
    _, token = claimed(db)
    assert one(db, "select public.renew_dataset_claim(%s, %s, 60)", dataset, token) is True
    expire(db, dataset)
    assert one(db, "select public.renew_dataset_claim(%s, %s, 60)", dataset, token) is False


def test_postponed_dataset_waits_without_using_an_attempt(db: Connection) -> None:
    dataset = add_dataset(db)
    _, token = claimed(db)
    assert one(db, "select public.put_off_dataset(%s, %s, 30)", dataset, token) is True
    assert claim(db) is None
    assert settle(db, dataset, token) is False
    expire(db, dataset)
    again = claim(db)
    assert again is not None
    assert again["attempts"] == 1


def test_settling_writes_every_column_and_one_notification(db: Connection) -> None:
    dataset = add_dataset(db)
    _, token = claimed(db)
    assert settle(db, dataset, token) is True
    assert settle(db, dataset, token) is False
    row = row_of(db, dataset)
    assert (row["status"], row["training_ready"], row["total_training_pairs"]) == ("ready", True, 44)
    assert (row["total_tokens"], float(row["avg_turns_per_conversation"])) == (68_788, 7.33)
    assert row["validated_at"] is not None
    assert row["validation_errors"] is None
    notices = db.execute(
        "select type, action_url from public.notifications where user_id = %s", [row["user_id"]]
    ).fetchall()
    assert [notice["type"] for notice in notices] == ["dataset_ready"]


@pytest.mark.parametrize(
    "change",
    [
        "status = 'error'",
        "deleted_at = now()",
        # The application's confirm route is called again after another upload.
        "status = 'validating', updated_at = now() + interval '1 second'",
    ],
)
def test_dataset_changed_during_validation_is_not_overwritten(db: Connection, change: str) -> None:
    dataset = add_dataset(db)
    _, token = claimed(db)
    db.execute(f"update public.datasets set {change} where id = %s", [dataset])
    before = row_of(db, dataset)
    assert settle(db, dataset, token) is False
    assert row_of(db, dataset) == before
    if "validating" in change:
        assert claim(db) is not None


def test_datasets_table_without_error_message_is_supported(db: Connection) -> None:
    db.execute("alter table public.datasets drop column error_message")
    dataset = add_dataset(db)
    _, token = claimed(db)
    errors = [{"line": 2, "error": "e"}]
    assert settle(db, dataset, token, status="error", error_message="m", validation_errors=errors) is True
    assert row_of(db, dataset)["validation_errors"] == errors
    (read,) = (db.execute("select public.training_dataset_row(%s)", [dataset]).fetchone() or {}).values()
    assert (read["status"], read["error_message"]) == ("error", None)


def test_validating_again_resets_the_attempts(db: Connection) -> None:
    dataset = add_dataset(db)
    settle(db, *claimed(db), status="error", error_message="m")
    assert row_of(db, dataset)["training_ready"] is False
    db.execute("update public.datasets set status = 'validating' where id = %s", [dataset])
    again = claim(db)
    assert again is not None
    assert again["attempts"] == 1


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_only_the_service_may_claim_and_settle_datasets(db: Connection, role: str) -> None:
    dataset = add_dataset(db)
    db.execute(f"set role {role}")
    for statement in (
        "select public.claim_dataset('w', 60)",
        f"select public.settle_dataset('{dataset}', '{dataset}', '{{}}')",
        f"select public.put_off_dataset('{dataset}', '{dataset}', 1)",
        f"select public.renew_dataset_claim('{dataset}', '{dataset}', 60)",
        "select * from public.dataset_validations",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute(statement)


# The service, through REST and Storage


def upload(project: Project, user: str, bucket: str, content: bytes | None) -> str:
    """Add a dataset in 'validating', with its file in the bucket unless it must be missing."""
    path = f"{user}/{uuid4()}/data.jsonl"
    with project.client() as client:
        if content is not None:
            answer = client.post(
                f"/storage/v1/object/{bucket}/{path}", content=content, headers={"content-type": "application/json"}
            )
            assert answer.is_success, answer.text
        row = {"user_id": user, "name": "sample", "storage_bucket": bucket, "storage_path": path, "file_size": 1}
        answer = client.post(
            "/rest/v1/datasets",
            json={**row, "file_name": "data.jsonl", "status": "validating"},
            headers={"prefer": "return=representation"},
        )
        assert answer.is_success, answer.text
        return str(answer.json()[0]["id"])


@pytest.mark.fault(51)
async def test_each_dataset_is_read_from_the_bucket_of_its_row(empty_supabase: Project) -> None:
    project = empty_supabase
    user = project.create_user(f"{uuid4().hex}@example.com")
    good = upload(project, user, "lora-datasets", lines(META, pair(2), pair(4)))
    other_bucket = upload(project, user, "training-files", json.dumps(GOOD).encode())
    broken = upload(project, user, "lora-datasets", lines(*GOOD[:3], "{]"))
    zero = upload(project, user, "lora-datasets", lines(*(dict(row, conversation_id="a\x00") for row in GOOD)))
    missing = upload(project, user, "lora-datasets", None)
    async with httpx.AsyncClient() as http:
        services: Any = SimpleNamespace(
            queue=DatabaseCalls(project.url, project.secret_key, worker="w", lease_seconds=60, http=http),
            storage=Storage(project.url, project.secret_key, http=http),
            settings=SimpleNamespace(lease_seconds=60, retry_base_seconds=30.0, max_handlings=6),
            heavy_slots=HeavySlots(1),
            repeats=Repeats(lambda: 0.0),
            clock=lambda: 0.0,
        )
        await Validator(services, asyncio.Event()).run_once()
    with project.client(user) as client:
        rows = {row["id"]: row for row in client.get("/rest/v1/datasets?select=*").json()}
    assert {key: rows[key]["status"] for key in rows} == {
        good: "ready",
        zero: "ready",
        other_bucket: "ready",
        broken: "error",
        missing: "error",
    }
    assert (rows[good]["total_training_pairs"], rows[other_bucket]["total_training_pairs"]) == (2, 20)
    assert rows[broken]["validation_errors"][0]["line"] == 4
    assert rows[broken]["error_message"].startswith("Line 4 of the dataset is not valid JSON")
    assert rows[missing]["error_message"] == "The dataset's file is not in the storage. Upload it again."
    assert [len(entry["messages"]) for entry in rows[good]["sample_data"]] == [5]
    with project.client() as client:
        notices = client.get(f"/rest/v1/notifications?select=type&user_id=eq.{user}").json()
    assert sorted(notice["type"] for notice in notices) == ["dataset_error"] * 2 + ["dataset_ready"] * 3
