"""Two users and their rows, and what each role of the database can do with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import sql

from tests.database.rows import Database, Row
from tests.project import ROOT

PAGE = (ROOT / "docs" / "rights.md").read_text()
NOTHING = "–"


@dataclass(frozen=True)
class Actor:
    """A role of the database, and the signed-in user whose token it comes with."""

    role: str
    user: UUID | None = None


@dataclass(frozen=True)
class World:
    """Two users; one of them has a row in every table."""

    database: Database
    owner: UUID
    stranger: UUID
    job: UUID

    def attempt(self, actor: Actor, statement: sql.Composable | str, *values: Any) -> list[Row] | int | None:
        """Run the statement as the actor: its rows, or how many rows it changed, or None if it is refused.

        Changes nothing. If a constraint refuses it, the actor had the right.
        """
        query = sql.SQL(statement) if isinstance(statement, str) else statement
        connection = self.database.connection
        with connection.transaction(force_rollback=True):
            claims = {"role": actor.role} | ({"sub": str(actor.user)} if actor.user else {})
            connection.execute("select set_config('request.jwt.claims', %s, true)", [json.dumps(claims)])
            connection.execute(sql.SQL("set local role {}").format(sql.Identifier(actor.role)))
            try:
                with connection.transaction():
                    cursor = connection.execute(query, values or None)
                    return cursor.fetchall() if cursor.description else cursor.rowcount
            except psycopg.errors.InsufficientPrivilege:
                return None
            except psycopg.IntegrityError:
                return 1


def populated(db: Database) -> Iterator[World]:
    run, _, _ = db.running_run()
    owner, job = run["user_id"], run["job_id"]
    dataset = db.job(job)["dataset_id"]
    db.rows("update training_jobs set created_at = now()")
    db.rows(
        "insert into metrics_points (job_id, epoch, step, training_loss, learning_rate) values (%s, 1, 1, 1, 0)", job
    )
    db.rows(
        "insert into model_artifacts (user_id, job_id, dataset_id, name, quality_metrics, training_summary,"
        " configuration, artifacts) values (%s, %s, %s, 'Zebras', '{}', '{}', '{}', '{}')",
        owner, job, dataset,
    )  # fmt: skip
    db.rows(
        "insert into cost_records (user_id, job_id, cost_type, amount, billing_period) values (%s, %s, 'x', 1, now())",
        owner, job,
    )  # fmt: skip
    db.rows("insert into notifications (user_id, type, title, message) values (%s, 'job_started', 't', 'm')", owner)
    db.rows("insert into dataset_validations (dataset_id, worker, lease_expires_at) values (%s, 'w', now())", dataset)
    db.rows("insert into training_workers (name, started_at, slots, held) values ('w', now(), 1, 0)")
    db.rows("insert into training_terms (document, written_by) values ('{}', 'w')")
    db.rows("insert into training_endpoints (launcher, endpoint) values ('runpod', 'here')")
    db.rows("insert into training_breakers (kind, name, endpoint) values ('image', '', 'here')")
    db.rows(
        "insert into training_holds (job_id, kind, name, endpoint, reason, held_until)"
        " values (%s, 'image', '', 'here', 'r', now())",
        job,
    )
    db.rows(
        "insert into training_results (run_id, execution_id, result, bytes)"
        " select id, gen_random_uuid(), '{}', 2 from training_runs limit 1"
    )
    db.rows("insert into training_progress (run_id, progress, bytes) select id, '{}', 2 from training_runs limit 1")
    db.rows(
        "insert into training_speeds (run_id, user_id, base_model, gpu_type, tokens_per_second)"
        " select id, user_id, 'some/base', 'H100', 1 from training_runs limit 1"
    )
    db.rows("insert into training_budgets (user_id, usd_per_day) values (%s, 1)", owner)
    db.rows("insert into training_erased_costs values (now(), 'some/base', 1, 1, 1, 1)")
    db.rows("insert into training_reservations (job_id, usd) values (%s, 1)", job)
    db.rows("insert into training_operator_holds (user_id, reason) values (%s, 'r')", db.user())
    db.rows("insert into training_drains (worker) values ('w')")
    db.rows("insert into training_retries (job_id, after_attempt) values (%s, 1)", job)
    db.rows("insert into training_aliases (name, user_id, move_number) values ('zebras', %s, 1)", owner)
    db.rows(
        "insert into training_alias_moves (alias, number, moved_by, run_id, adapter)"
        " select 'zebras', 1, 'somebody', id, 'adapter-0123abcd' from training_runs limit 1"
    )
    db.rows("insert into training_removed_aliases (name) values ('lions')")
    db.rows("insert into training_endpoint_releases (wanted_at) values (now())")
    # The run's check-in has made a row of training_stages.
    db.rows("insert into training_operator_notices (key) values ('jobs_held')")
    db.rows("insert into training_served_removals (run_id) select id from training_runs limit 1")
    db.rows(
        "insert into training_serving_errands (launcher, request, worker, lease_expires_at)"
        " values ('runpod', '{}', 'w', now())"
    )
    db.rows("insert into training_webhook_endpoints (name) values ('hooks.example.com-01234567')")
    db.rows(
        "insert into training_webhook_events (event, type, job_id, user_id, body)"
        " values ('msg_1', 'job.started', %s, %s, '{}')",
        job, owner,
    )  # fmt: skip
    db.rows(
        "insert into training_webhook_deliveries (event_id, endpoint, job_id)"
        " select e.id, p.name, e.job_id from training_webhook_events e, training_webhook_endpoints p"
    )
    yield World(db, owner, db.user(), job)
    db.close()


OTHER_VALUES = {
    "uuid": "gen_random_uuid()",
    "text": "'other'",
    "character varying": "'other'",
    "jsonb": "to_jsonb('other'::text)",
    "boolean": "not coalesce({0}, false)",
    "integer": "coalesce({0}, 0) + 1",
    "bigint": "coalesce({0}, 0) + 1",
    "numeric": "coalesce({0}, 0) + 1",
    "double precision": "coalesce({0}, 0) + 1",
    "date": "date '2001-01-01'",
    "timestamp with time zone": "timestamptz '2001-01-01'",
    "uuid[]": "array[gen_random_uuid()]",
    "integer[]": "array[1]",
    "text[]": "array['other']",
}

UNKNOWN_JOB = UUID(int=1)
"""A job that the worker never had."""

INSERTED = {
    # The rows that the application's routes insert; the right to any other row is an `insert`.
    "queue": {"status": "queued", "external_job_id": None, "started_at": None},
    "note": {"type": "job_queued"},
    "insert elsewhere": {"job_id": str(UNKNOWN_JOB)},
}

UPDATED = {
    "cancel": "status = 'cancelled', completed_at = now(), final_cost = null",
    "mark read": "read = true",
}

SPECIAL = {
    "training_jobs": ("queue", "cancel"),
    "notifications": ("note", "mark read"),
    "metrics_points": ("insert elsewhere", None),
    "cost_records": ("insert elsewhere", None),
}


def tables(database: Database) -> list[str]:
    found = database.rows(
        "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm')"
    )
    return [row["relname"] for row in found]


def may_insert(world: World, actor: Actor, table: str, columns: Row) -> bool:
    """Whether the actor may add a copy of the owner's row with other columns."""
    found = world.database.row(
        f"select to_jsonb(t) as original from public.{table} t where to_jsonb(t)->>'id' is distinct from %s",
        str(UNKNOWN_JOB),
    )["original"]
    made = found | {"id": str(uuid4()) if isinstance(found.get("id"), str) else 0} | columns
    statement = sql.SQL(
        "insert into public.{0} overriding system value select (jsonb_populate_record(null::public.{0}, %s)).*"
    ).format(sql.Identifier(table))
    return bool(world.attempt(actor, statement, json.dumps(made)))


def may_update(world: World, actor: Actor, table: str, passed_over: tuple[str, ...]) -> bool:
    """Whether the actor may change any column."""
    columns = world.database.rows(
        "select attname as name, regexp_replace(format_type(atttypid, atttypmod), '\\(.*\\)', '') as kind"
        " from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped and attidentity = ''",
        f"public.{table}",
    )
    return any(
        world.attempt(
            actor,
            f'update public.{table} set "{column["name"]}" = '
            + OTHER_VALUES[column["kind"]].format(f'"{column["name"]}"'),
        )
        for column in columns
        if column["name"] not in passed_over
    )


@contextmanager
def job_unknown_to_the_worker(world: World) -> Iterator[None]:
    """A job of the owner's that the worker never had."""
    world.database.rows(
        "insert into training_jobs select (jsonb_populate_record(j, jsonb_build_object('id', %s::uuid,"
        " 'external_job_id', null))).* from training_jobs j", UNKNOWN_JOB,
    )  # fmt: skip
    yield
    world.database.rows("delete from training_jobs where id = %s", UNKNOWN_JOB)


def rights_to_table(world: World, actor: Actor, table: str) -> str:
    """A cell of the page's table of tables, by what the actor can really do."""
    may = []
    if world.attempt(actor, f"select 1 as found from public.{table}"):
        may.append("select")
    inserting, updating = SPECIAL.get(table, (None, None))
    if may_insert(world, actor, table, {}):
        may.append("insert")
    elif inserting:
        with job_unknown_to_the_worker(world):
            may += [inserting] if may_insert(world, actor, table, INSERTED[inserting]) else []
    if may_update(world, actor, table, ("read",) if updating == "mark read" else ()):
        may.append("update")
    elif updating and world.attempt(actor, f"update public.{table} set {UPDATED[updating]}"):
        may.append(updating)
    if world.attempt(actor, f"delete from public.{table}"):
        may.append("delete")
    return ", ".join(may) or NOTHING


def as_user(world: World, user: UUID, statement: str, *values: Any) -> list[Row]:
    """Run a statement as the user and commit it."""
    with world.database.connection.transaction():
        claims = json.dumps({"role": "authenticated", "sub": str(user)})
        world.database.rows("select set_config('request.jwt.claims', %s, true)", claims)
        world.database.rows("set local role authenticated")
        return world.database.rows(statement, *values)
