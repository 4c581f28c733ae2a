"""A database of 0.1 goes to the next version under a worker and a trainer of 0.1, which notice nothing of it.

Their calls are kept as they made them (`tests/data/worker_0_1_calls.json`), so this test goes on protecting them when
the worker's own code has moved on. The next version is every migration of this release and one more, made up here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from lora_worker.database import migrations
from lora_worker.database.functions import SCHEMA_VERSION
from lora_worker.database.migrations import migrate, migration_files
from sandbox.supabase.postgres import Postgres
from tests.database.rows import Database, Row
from tests.frozen import CALLS_OF_0_1, frozen_hashes, migrations_of

CALLS: list[Row] = json.loads(CALLS_OF_0_1.read_text(encoding="utf-8"))
NEXT = SCHEMA_VERSION + 1

_MADE_UP = f"""
alter table public.training_runs add column if not exists tail jsonb;

create or replace function public.record_progress_{NEXT}(run_id uuid, tail jsonb) returns boolean
language sql security definer set search_path = '' as $$
  update public.training_runs r set tail = record_progress_{NEXT}.tail where r.id = record_progress_{NEXT}.run_id
  returning true
$$;
revoke all on function public.record_progress_{NEXT} from public, anon, authenticated, service_role;
grant execute on function public.record_progress_{NEXT} to service_role;

create or replace function public.worker_schema_{NEXT}(dataset public.datasets) returns boolean
language sql immutable set search_path = '' as $$ select true $$;
revoke all on function public.worker_schema_{NEXT} from public, anon, authenticated, service_role;
grant execute on function public.worker_schema_{NEXT} to service_role;

create or replace function public.worker_schema_version() returns int
language sql immutable set search_path = '' as $$ select {NEXT} $$;
"""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32,}")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d.*")


@pytest.fixture(scope="module")
def template_of_0_1(postgres: Postgres) -> str:
    template = postgres.create_template(migrated=False)
    with psycopg.connect(postgres.database_url(template), autocommit=True) as connection:
        for path in migrations_of("0.1"):
            connection.execute(path.read_bytes())
    return template


@pytest.fixture(autouse=True)
def _next_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [*migration_files(), ("29990101000001_made_up.sql", _MADE_UP)]
    monkeypatch.setattr(migrations, "migration_files", lambda: files)


@contextmanager
def database_of_0_1(postgres: Postgres, template: str) -> Iterator[Database]:
    with postgres.clone(template) as url:
        db = Database(url)
        yield db
        db.close()


class OldWorker:
    """Makes the recorded calls of 0.1, of which later ones use what earlier ones were answered."""

    def __init__(self, db: Database) -> None:
        self._db = db
        token = uuid4().hex + uuid4().hex
        (job,) = db.jobs()
        for _ in range(2):
            db.rows("update datasets set status = 'validating' where id = %s", db.dataset(db.user()))
        self.known: Row = {
            "job": str(job),
            "token": token,
            "token_sha256": hashlib.sha256(token.encode()).hexdigest(),
            "external_job_id": uuid4().hex,
            "execution": str(uuid4()),
        }

    def make(self, call: Row) -> Any:
        arguments = {name: self._filled(value) for name, value in call["arguments"].items()}
        marks = ", ".join(f"{name} => %s" for name in arguments)
        values = [json.dumps(value) if isinstance(value, dict | list) else value for value in arguments.values()]
        with self._db.connection.transaction():
            self._db.connection.execute(f"set local role {call['role']}".encode())
            answer = self._db.row(f"select public.{call['function']}({marks}) as answer", *values)["answer"]
        for name, path in call.get("remember", {}).items():
            found = answer
            for part in path.split("."):
                found = found[int(part) if part.isdigit() else part]
            self.known[name] = found
        return answer

    def _filled(self, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("$"):
            return self.known[value[1:]]
        if isinstance(value, dict):
            return {key: self._filled(item) for key, item in value.items()}
        return [self._filled(item) for item in value] if isinstance(value, list) else value

    def written(self) -> Row:
        """What the application sees in the end."""
        job = self.known["job"]
        return {
            "job": self._db.row("select to_jsonb(j) as row from training_jobs j where id = %s", job)["row"],
            **{
                table: sorted(
                    (plain(found["row"]) for found in self._db.rows(f"select to_jsonb(t) as row from {table} t")),
                    key=str,
                )
                for table in ("metrics_points", "model_artifacts", "cost_records", "notifications", "training_launches")
            },
        }


def plain(value: Any) -> Any:
    """The value without what differs from one run to the next: ids, times and durations."""
    if isinstance(value, dict):
        return {key: "a number" if "seconds" in key and item else plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, str) and (_UUID.search(value) or _TIME.fullmatch(value)):
        return "an id or time"
    return value


def says_all_of(new: Any, old: Any) -> bool:
    """Whether an answer has all keys and values of the old one; a newer function may add keys."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and says_all_of(new[key], old[key]) for key in old)
    if isinstance(old, list):
        return isinstance(new, list) and len(new) == len(old) and all(map(says_all_of, new, old))
    return bool(new == old)


@pytest.fixture(scope="module")
def without_upgrade(postgres: Postgres, template_of_0_1: str) -> tuple[list[Any], Row]:
    """The answers and the rows without an upgrade."""
    with database_of_0_1(postgres, template_of_0_1) as db:
        worker = OldWorker(db)
        answers = [plain(worker.make(call)) for call in CALLS]
        assert answers[0] == len(frozen_hashes()) == 1, "the first calls are those of the first release"
        return answers, plain(worker.written())


@pytest.mark.parametrize("before", range(1, len(CALLS)), ids=lambda n: f"{n}-{CALLS[n]['function']}")
def test_upgrade_before_any_call_changes_nothing_for_the_old_worker(
    before: int, postgres: Postgres, template_of_0_1: str, without_upgrade: tuple[list[Any], Row]
) -> None:
    answers, rows = without_upgrade
    with database_of_0_1(postgres, template_of_0_1) as db:
        worker = OldWorker(db)
        for place, call in enumerate(CALLS):
            if place == before:
                migrate(db.connection.info.dsn)
                assert db.call("worker_schema_version") == NEXT
                assert db.rows("select d.worker_schema_1 from datasets d limit 0") == []
            answer = plain(worker.make(call))
            assert says_all_of(answer, answers[place]), call["function"]
        assert says_all_of(plain(worker.written()), rows)


def test_upgrade_under_calls_of_old_and_new_workers_loses_no_lease(postgres: Postgres, template_of_0_1: str) -> None:
    with database_of_0_1(postgres, template_of_0_1) as db, ThreadPoolExecutor(1) as pool:
        worker = OldWorker(db)
        places = {call["function"]: place for place, call in enumerate(CALLS)}
        settled = places["settle_run"]
        for call in CALLS[: places["record_progress"] + 1]:
            worker.make(call)
        upgrading = pool.submit(migrate, db.connection.info.dsn)
        renewed = 0
        while not upgrading.done() or not renewed:
            (news,) = worker.make(next(call for call in CALLS if call["function"] == "renew_training_runs"))
            assert news["held"]
            renewed += 1
        upgrading.result()
        # A worker of the next version reports on the same run, and the old one settles it.
        assert db.call(f"record_progress_{NEXT}", worker.known["run"], {"step": 6}) is True
        assert worker.make(CALLS[settled]) == "completed"
        assert db.job(worker.known["job"])["status"] == "completed"
        assert db.run(worker.known["run"])["tail"] == {"step": 6}
