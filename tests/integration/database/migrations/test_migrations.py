"""Migrations bring every database to the same state, keep its rows, and can be undone completely."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import psycopg
import pytest

from lora_worker.database import migrations
from lora_worker.database.migrations import migrate, migration_files, undo_files, undo_migrations
from lora_worker.errors import ServiceRefusedError, ServiceUnavailableError
from sandbox.supabase.postgres import Postgres
from sandbox.supabase.rights import NOTHING_BY_DEFAULT
from tests.database.catalog import catalog
from tests.database.rows import Database
from tests.processes.waiting import PATIENCE_SECONDS, until
from tests.project import ROOT

STATUSES = ("queued", "initializing", "running", "completed", "failed", "cancelled")
TABLES = ("datasets", "training_jobs", "metrics_points", "model_artifacts", "cost_records", "notifications")

OWN_TABLES = (
    *("training_runs", "training_launches", "dataset_validations", "training_terms"),
    *("training_workers", "training_waiting_users"),
    *("training_endpoints", "training_breakers", "training_holds", "training_progress", "training_results"),
    *("training_budgets", "training_reservations", "training_erased_costs"),
    *("training_operator_holds", "training_drains", "training_retries", "training_stages"),
)

_APPLICATION_SCHEMA = ROOT / "tests" / "data" / "application_schema.sql"
_PIPELINE_SCHEMA = ROOT / "tests" / "data" / "pipeline_schema.sql"
_WHO_CAN_CALL = """
    select p.oid::regprocedure, a.grantee from pg_proc p, aclexplode(coalesce(proacl, acldefault('f', proowner))) a
    where p.pronamespace = 'public'::regnamespace and a.grantee <> p.proowner"""
_WAITS_FOR_COSTS = "select from pg_locks where relation = 'public.cost_records'::regclass and not granted"


@pytest.fixture(scope="module")
def bare_template(postgres: Postgres) -> str:
    """A Supabase project without any table of ours or of the application."""
    return postgres.create_template(migrated=False)


@pytest.fixture(scope="module")
def application_template(postgres: Postgres) -> str:
    """The application's own schema, with rows of every status, from before projects stopped granting by default."""
    template = postgres.create_template(migrated=False, generous=True)
    database = Database(postgres.database_url(template))
    database.connection.execute(_APPLICATION_SCHEMA.read_bytes())
    database.connection.execute(NOTHING_BY_DEFAULT.encode())
    add_rows(database)
    # A database that somebody is connected to can't be cloned.
    database.close()
    return template


@pytest.fixture
def empty(postgres: Postgres, bare_template: str) -> Iterator[str]:
    with postgres.clone(bare_template) as url:
        yield url


@pytest.fixture
def applications(postgres: Postgres, application_template: str) -> Iterator[str]:
    with postgres.clone(application_template) as url:
        yield url


def add_rows(database: Database) -> None:
    """Add a user's dataset and jobs in every status, with all rows that belong to them."""
    user = database.user()
    for status, job in zip(STATUSES, database.jobs(len(STATUSES), user), strict=True):
        database.rows(
            "update training_jobs set status = %s, external_job_id = %s, current_cost = 1.25 where id = %s",
            status, f"runpod-{status}", job,
        )  # fmt: skip
        database.rows(
            "insert into metrics_points (job_id, epoch, step, training_loss, learning_rate)"
            " values (%s, 1, 1, 1.5, 0.0001)",
            job,
        )
        database.rows(
            "insert into notifications (user_id, type, title, message) values (%s, 'job_queued', 'Queued', 'It waits')",
            user,
        )
        if status == "completed":
            add_result(database, user, job)


def add_result(database: Database, user: UUID, job: UUID) -> None:
    """Add the cost record and the model of a completed job."""
    database.rows(
        "insert into cost_records (user_id, job_id, cost_type, amount, billing_period)"
        " values (%s, %s, 'training_compute', 1.25, '2026-02-24')",
        user, job,
    )  # fmt: skip
    database.rows(
        "with made as ("
        "  insert into model_artifacts (user_id, job_id, dataset_id, name,"
        "    quality_metrics, training_summary, configuration, artifacts)"
        "  select user_id, id, dataset_id, 'Zebras', '{}', '{}', '{}', '{}' from training_jobs where id = %s"
        "  returning id, job_id)"
        " update training_jobs j set artifact_id = made.id from made where j.id = made.job_id",
        job,
    )


def rows_of(url: str) -> dict[str, list[object]]:
    """Every row of the application's tables, without the columns that the migrations add, which must be empty."""
    with psycopg.connect(url) as connection:
        return {
            table: connection.execute(
                f"select jsonb_strip_nulls(to_jsonb(t)), ctid::text from public.{table} t order by 1".encode()
            ).fetchall()
            for table in TABLES
        }


# Objects of the application that must stay. Its function maintains updated_at, so our trigger is not added there.
_OWN_FUNCTION = "update_updated_at_column()"
_OWN_LINES = (
    "column: datasets.created_by uuid",
    "column: datasets.updated_by uuid",
    f"call: {_OWN_FUNCTION}",
    f"function: CREATE OR REPLACE FUNCTION public.{_OWN_FUNCTION}",
)


def without_the_applications_own(lines: list[str]) -> list[str]:
    """The lines with the application's function for updated_at under our function's name, where a trigger calls it."""
    return [
        line.replace(_OWN_FUNCTION, "training_touch_updated_at()") if line.startswith("trigger: ") else line
        for line in lines
        if not line.startswith(_OWN_LINES)
    ]


def without_old_grants(lines: list[str]) -> list[str]:
    """The lines without the grants on the application's tables, which differ between older and newer projects."""
    needed = {
        f"grant: {table} {role} {right}"
        for table in TABLES
        for role in ("authenticated", "service_role")
        for right in ("SELECT", "INSERT", "UPDATE", "DELETE")
    }
    assert needed <= set(lines)
    return [line for line in lines if not line.startswith(tuple(f"grant: {table} " for table in TABLES))]


def test_empty_and_existing_databases_end_in_the_same_schema(empty: str, applications: str) -> None:
    migrate(empty)
    migrate(applications)
    ours = Counter(without_old_grants(catalog(empty)))
    theirs = Counter(without_old_grants(without_the_applications_own(catalog(applications))))
    assert ours - theirs == Counter(), "an empty database got more"
    assert theirs - ours == Counter(), "the application's database got more"
    print(f"{ours.total()} columns, constraints, indexes, triggers, policies, grants and functions are the same")


def test_migrating_changes_no_application_row(applications: str) -> None:
    before = rows_of(applications)
    assert {row["status"] for row, _ in before["training_jobs"]} == set(STATUSES)  # type: ignore[misc,index]
    migrate(applications)
    assert rows_of(applications) == before


def test_migration_error_does_not_quote_row_values(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [("0001_broken.sql", "do $$ begin perform 'what somebody wrote'::uuid; end $$")]
    monkeypatch.setattr(migrations, "migration_files", lambda: broken)
    with pytest.raises(ServiceRefusedError, match=r"0001_broken\.sql was refused, .*SQLSTATE 22P02") as caught:
        migrate(empty)
    assert "somebody wrote" not in str(caught.value)


def test_application_objects_are_left_unchanged(applications: str) -> None:
    before = Counter(catalog(applications))
    migrate(applications)
    changed = before - Counter(catalog(applications))
    open_before = {f"security: {table} false" for table in ("metrics_points", "cost_records", "notifications")}
    assert set(changed) == open_before


@pytest.mark.parametrize("kind", ["empty", "applications"])
def test_migrating_is_idempotent(kind: str, request: pytest.FixtureRequest, postgres: Postgres) -> None:
    url = request.getfixturevalue(kind)
    migrate(url)
    once = postgres.dump(url)
    migrate(url)
    assert postgres.dump(url) == once


def test_no_function_is_open_to_all_between_two_files(postgres: Postgres) -> None:
    """Supabase's CLI commits each file separately, so each must leave functions closed even if the next one fails."""
    generous = postgres.create_template(migrated=False, generous=True)
    with postgres.clone(generous) as url, psycopg.connect(url, autocommit=True) as connection:
        for name, text in migration_files():
            connection.execute(text.encode())
            can_call = connection.execute(_WHO_CAN_CALL).fetchall()
            if name >= "20261123000020_open_functions.sql":
                # From here on the listed functions are open, and each later file gives its own their rights.
                assert len(can_call) > 30
            else:
                assert can_call == [], name


def test_repeated_migration_is_not_blocked_by_readers(applications: str) -> None:
    migrate(applications)
    with psycopg.connect(applications) as reader, psycopg.connect(applications) as migrating:
        for table in TABLES:
            reader.execute(f"select count(*) from public.{table}".encode())
        # With this timeout, a lock that conflicts with readers fails at once.
        migrating.execute("set local lock_timeout = '1ms'")
        for _, text in migration_files():
            migrating.execute(text.encode())


@pytest.mark.parametrize("kind", ["empty", "applications"])
def test_repeated_migration_is_not_blocked_by_writers(kind: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(kind)
    migrate(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_PIPELINE_SCHEMA.read_bytes())
    migrate(url)
    tables = [*TABLES, "pipeline_training_jobs", *OWN_TABLES]
    with psycopg.connect(url) as writer, psycopg.connect(url) as migrating:
        for table in tables:
            # The lock of an open transaction that has inserted, updated or deleted rows.
            writer.execute(f"lock table public.{table} in row exclusive mode".encode())
        migrating.execute("set local lock_timeout = '1ms'")
        for _, text in migration_files():
            migrating.execute(text.encode())


def test_locked_table_is_retried_with_short_lock_timeouts(applications: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "_TABLE_LOCK_SECONDS", 0.05)
    pauses: list[float] = []
    with psycopg.connect(applications) as writer:
        writer.execute("lock table public.datasets in row exclusive mode")

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 2:
                writer.rollback()

        migrate(applications, sleep=pause)
    assert len(pauses) == 2


def test_permanently_locked_table_fails_cleanly_with_a_sentence(
    applications: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "_TABLE_LOCK_SECONDS", 0.01)
    before = postgres.dump(applications)
    pauses: list[float] = []
    with psycopg.connect(applications) as writer:
        writer.execute("lock table public.datasets in row exclusive mode")
        with pytest.raises(ServiceUnavailableError, match=r"nothing is changed: try again at a quieter moment$"):
            migrate(applications, sleep=pauses.append)
    assert len(pauses) == 4
    assert postgres.dump(applications) == before


def test_deadlock_with_the_live_system_is_retried(applications: str) -> None:
    pauses: list[float] = []
    with psycopg.connect(applications) as writer, ThreadPoolExecutor(1) as pool:
        # So that Postgres ends the migration, and not the writer, at a deadlock.
        writer.execute("set deadlock_timeout = '60s'")
        writer.execute("lock table public.cost_records in row exclusive mode")
        migrating = pool.submit(migrate, applications, sleep=pauses.append)
        with psycopg.connect(applications, autocommit=True) as watching:
            until(lambda: watching.execute(_WAITS_FOR_COSTS).fetchone() is not None, "a waiting migration")
        # By now the migration has made its index on notifications, and holds that lock until its end.
        writer.execute("lock table public.notifications in row exclusive mode")
        writer.rollback()
        assert migrating.result(PATIENCE_SECONDS)
    assert len(pauses) == 1


@pytest.mark.parametrize("kind", ["empty", "applications"])
def test_undo_removes_everything_that_migrating_added(
    kind: str, request: pytest.FixtureRequest, postgres: Postgres
) -> None:
    url = request.getfixturevalue(kind)
    before = postgres.dump(url)
    migrate(url)
    assert postgres.dump(url) != before
    undone = undo_migrations(url)
    assert undone.files == ["storage_policies.sql", *(name for name, _ in reversed(migration_files()))]
    assert postgres.dump(url) == before


@pytest.mark.parametrize("kind", ["empty", "applications"])
def test_undo_is_idempotent_and_migrating_again_works(
    kind: str, request: pytest.FixtureRequest, postgres: Postgres
) -> None:
    url = request.getfixturevalue(kind)
    migrate(url)
    migrated = postgres.dump(url)
    undo_migrations(url)
    undo_migrations(url)
    migrate(url)
    assert postgres.dump(url) == migrated


def test_undo_keeps_created_tables_with_rows_but_closes_them(empty: str) -> None:
    migrate(empty)
    database = Database(empty)
    add_rows(database)
    before = rows_of(empty)
    undo_migrations(empty)
    assert rows_of(empty) == before
    (job, *_) = database.rows("update training_jobs set progress = 1 returning updated_at > created_at as touched")
    assert job["touched"], "updated_at is kept no more"
    database.rows("set role authenticated")
    assert all(database.rows(f"select from {table}") == [] for table in TABLES)
    database.close()
    migrate(empty)
    migrate_again = rows_of(empty)
    assert {table: len(rows) for table, rows in migrate_again.items()} == {t: len(rows) for t, rows in before.items()}


def test_undo_closes_only_the_tables_that_migrating_created(empty: str, postgres: Postgres) -> None:
    database = Database(empty)
    schema = _APPLICATION_SCHEMA.read_text()
    # An application that has only the tables of datasets and jobs.
    database.connection.execute(schema.split("create table public.metrics_points")[0].encode())
    database.close()
    before = postgres.dump(empty)
    migrate(empty)
    undo_migrations(empty)
    assert postgres.dump(empty) == before


def test_undo_keeps_policies_added_by_the_application(applications: str) -> None:
    migrate(applications)
    with psycopg.connect(applications, autocommit=True) as connection:
        connection.execute("create policy later on cost_records for select using (auth.uid() = user_id)")
        undo_migrations(applications)
        found = connection.execute(
            "select relname, relrowsecurity from pg_class where relname in ('cost_records', 'notifications')"
        ).fetchall()
    assert dict(found) == {"cost_records": True, "notifications": False}


def test_existing_application_policies_are_not_duplicated(applications: str) -> None:
    with psycopg.connect(applications, autocommit=True) as connection:
        connection.execute("alter table cost_records enable row level security")
        connection.execute("create policy own on cost_records for all using (user_id = auth.uid())")
        migrate(applications)
        found = connection.execute("select policyname from pg_policies where tablename = 'cost_records'").fetchall()
    assert found == [("own",)]


def test_undo_refuses_while_a_run_is_live(applications: str, postgres: Postgres) -> None:
    migrate(applications)
    database = Database(applications)
    database.claim()
    database.close()
    before = postgres.dump(applications)
    with pytest.raises(ServiceRefusedError, match=r"1 runs live .* `lora-worker status`"):
        undo_migrations(applications)
    assert postgres.dump(applications) == before


def test_every_migration_has_an_undo_that_migrate_never_applies() -> None:
    names = [name for name, _ in migration_files()]
    assert [name for name, _ in undo_files()] == names[::-1]
    assert not {text for _, text in migration_files()} & {text for _, text in undo_files()}


def test_migrations_may_run_any_number_of_times(db: Database, database: str) -> None:
    from lora_worker.database.migrations import migrate

    run, _, _ = db.running_run()
    before = db.snapshot()
    db.rows("update training_runs set lease_expires_at = lease_expires_at")
    assert migrate(database).changes == []
    assert db.snapshot() == before
    assert db.settle(run) == "completed"
