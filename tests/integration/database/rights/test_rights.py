"""Everyone may do what docs/rights.md says, and nothing else: every cell of its tables is tried."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from psycopg import sql

from sandbox.postgres import Postgres
from sandbox.project import Project
from tests.database.rows import Database, Row
from tests.documented import sql_of_page, table_under
from tests.project import ROOT

_PAGE = (ROOT / "docs" / "rights.md").read_text()
_NOTHING = "–"
# A project of before 2026-10-30 granted all new tables and functions to everybody; one of today grants nothing.
_ON_BOTH = pytest.mark.parametrize("world", [False, True], indirect=True, ids=["nothing granted", "all granted"])
_UNIT_BYTES = {"MB": 1024**2, "GB": 1024**3}


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
        """What the statement gives the actor: rows, or how many it changed; None when it is refused.

        Changes nothing. A constraint that refuses has let the actor past all rights.
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


@pytest.fixture
def world(
    postgres: Postgres, database_template: str, generous_template: str, request: pytest.FixtureRequest
) -> Iterator[World]:
    """In a project that grants nothing by default; or, with the parameter True, everything."""
    template = generous_template if getattr(request, "param", False) else database_template
    with postgres.clone(template) as url:
        yield from populated(Database(url))


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
    yield World(db, owner, db.user(), job)
    db.close()


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────

_OTHER_VALUES = {
    "uuid": "gen_random_uuid()",
    "text": "'other'",
    "character varying": "'other'",
    "jsonb": "to_jsonb('other'::text)",
    "boolean": "not coalesce({0}, false)",
    "integer": "coalesce({0}, 0) + 1",
    "bigint": "coalesce({0}, 0) + 1",
    "numeric": "coalesce({0}, 0) + 1",
    "date": "date '2001-01-01'",
    "timestamp with time zone": "timestamptz '2001-01-01'",
    "uuid[]": "array[gen_random_uuid()]",
    "integer[]": "array[1]",
}

_ELSEWHERE = UUID(int=1)
"""A job that the worker never had."""

_INSERTED = {
    # What the application's routes insert; anything else of these tables is an `insert`.
    "queue": {"status": "queued", "external_job_id": None, "started_at": None},
    "note": {"type": "job_queued"},
    "insert elsewhere": {"job_id": str(_ELSEWHERE)},
}

_UPDATED = {
    "cancel": "status = 'cancelled', completed_at = now(), final_cost = null",
    "mark read": "read = true",
}

_SPECIAL = {
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
        str(_ELSEWHERE),
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
            + _OTHER_VALUES[column["kind"]].format(f'"{column["name"]}"'),
        )
        for column in columns
        if column["name"] not in passed_over
    )


@contextmanager
def another_job(world: World) -> Iterator[None]:
    """A job of the owner's that the worker never had."""
    world.database.rows(
        "insert into training_jobs select (jsonb_populate_record(j, jsonb_build_object('id', %s::uuid,"
        " 'external_job_id', null))).* from training_jobs j", _ELSEWHERE,
    )  # fmt: skip
    yield
    world.database.rows("delete from training_jobs where id = %s", _ELSEWHERE)


def rights_to_table(world: World, actor: Actor, table: str) -> str:
    """A cell of the table of tables, from what the actor can really do."""
    may = []
    if world.attempt(actor, f"select 1 as found from public.{table}"):
        may.append("select")
    inserting, updating = _SPECIAL.get(table, (None, None))
    if may_insert(world, actor, table, {}):
        may.append("insert")
    elif inserting:
        with another_job(world):
            may += [inserting] if may_insert(world, actor, table, _INSERTED[inserting]) else []
    if may_update(world, actor, table, ("read",) if updating == "mark read" else ()):
        may.append("update")
    elif updating and world.attempt(actor, f"update public.{table} set {_UPDATED[updating]}"):
        may.append(updating)
    if world.attempt(actor, f"delete from public.{table}"):
        may.append("delete")
    return ", ".join(may) or _NOTHING


@_ON_BOTH
@pytest.mark.fault(56)
def test_table_rights_are_as_documented(world: World) -> None:
    actors = {
        "anon": Actor("anon"),
        "its owner": Actor("authenticated", world.owner),
        "another user": Actor("authenticated", world.stranger),
        "service role": Actor("service_role"),
    }
    found = {
        f"`{table}`": {name: rights_to_table(world, actor, table) for name, actor in actors.items()}
        for table in tables(world.database)
    }
    print_table("table", found)
    assert found == table_under(_PAGE, "Tables")


def test_only_the_service_role_can_list_users(world: World) -> None:
    """What is refused says nothing about other rows: a stranger's filter by id finds no row, as for a wrong id."""
    stranger = Actor("authenticated", world.stranger)
    for job in (world.job, uuid4()):
        assert world.attempt(stranger, "select status from training_jobs where id = %s", job) == []
        assert world.attempt(stranger, "update training_jobs set status = 'cancelled' where id = %s", job) == 0


# ── functions ───────────────────────────────────────────────────────────────────────────────────────


def may_call(world: World, actor: Actor, function: Row) -> bool:
    """Whether the actor gets into the function; what it does with nulls is of no interest."""
    arguments = ", ".join(f"null::{kind}" for kind in function["kinds"])
    try:
        answer = world.attempt(actor, f"select public.{function['name']}({arguments})")
    except psycopg.Error:
        return True
    return answer is not None


@_ON_BOTH
@pytest.mark.fault(60)
def test_function_rights_are_as_documented(world: World) -> None:
    """The key that goes to the GPU opens three functions, which ask for a run's token, and no table."""
    functions = world.database.rows(
        "select proname as name, coalesce((select array_agg(format_type(t, null) order by n)"
        "   from unnest(proargtypes) with ordinality as a (t, n)), '{}') as kinds"
        " from pg_proc where pronamespace = 'public'::regnamespace"
    )
    actors = {
        "anon": Actor("anon"),
        "user": Actor("authenticated", world.owner),
        "service role": Actor("service_role"),
    }
    found = {
        f"`{function['name']}`": {
            name: "yes" if may_call(world, actor, function) else _NOTHING for name, actor in actors.items()
        }
        for function in functions
    }
    print_table("function", found)
    documented = {name: cells for names, cells in table_under(_PAGE, "Functions").items() for name in names.split(", ")}
    assert found == documented


def test_wrong_run_token_is_refused(world: World) -> None:
    anon = Actor("anon")
    run = world.database.row("select execution_id from training_runs")
    refused = world.attempt(anon, "select check_in_run('wrong', 'runpod-1', %s) as answer", run["execution_id"])
    assert refused == [{"answer": {"may_train": False, "reason": "unknown_token"}}]
    for call in ("request_upload('wrong', %s, '[{}]')", "upload_grant('wrong', %s)"):
        (answer,) = world.attempt(anon, f"select {call} as answer", run["execution_id"])  # type: ignore[misc]
        assert answer["answer"]["reason"] == "unknown_token"


# ── what owners may do with their jobs ──────────────────────────────────────────────────────────────


def as_user(world: World, user: UUID, statement: str, *values: Any) -> list[Row]:
    """Run it as the user and keep what it does."""
    with world.database.connection.transaction():
        claims = json.dumps({"role": "authenticated", "sub": str(user)})
        world.database.rows("select set_config('request.jwt.claims', %s, true)", claims)
        world.database.rows("set local role authenticated")
        return world.database.rows(statement, *values)


@pytest.mark.parametrize("status", ["queued", "initializing", "running"])
@pytest.mark.fault(8)
def test_applications_own_update_cancels_a_job(world: World, status: str) -> None:
    world.database.rows("update training_jobs set status = %s, current_cost = 1.25", status)
    # The application's clock may be wrong, and its cost NaN, which is null in JSON.
    as_user(
        world,
        world.owner,
        "update training_jobs set status = 'cancelled', completed_at = '2001-01-01', final_cost = null where id = %s",
        world.job,
    )
    by_update = world.database.job(world.job)
    assert (by_update["status"], by_update["current_stage"]) == ("cancelled", "cancelled")
    assert by_update["final_cost"] == by_update["current_cost"]
    assert by_update["completed_at"] == by_update["updated_at"]

    world.database.rows("update training_jobs set status = %s, final_cost = null, completed_at = null", status)
    (by_function,) = as_user(world, world.owner, "select cancel_training_job(%s) as done", world.job)
    assert by_function == {"done": True}
    moving = {"completed_at": None, "updated_at": None}
    assert world.database.job(world.job) | moving == by_update | moving


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_ended_job_cannot_be_cancelled(world: World, status: str) -> None:
    world.database.rows("update training_jobs set status = %s", status)
    before = world.database.job(world.job)
    as_user(world, world.owner, "update training_jobs set status = 'cancelled' where id = %s", world.job)
    (answer,) = as_user(world, world.owner, "select cancel_training_job(%s) as done", world.job)
    assert answer == {"done": False}
    assert world.database.job(world.job) == before


@pytest.mark.parametrize(
    "change",
    ["progress = 100", "error_message = 'x'", "external_job_id = 'x'", "retry_count = 9", "artifact_id = null"],
)
def test_cancelling_update_may_change_no_other_column(world: World, change: str) -> None:
    world.database.rows("update training_jobs set artifact_id = (select id from model_artifacts)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="can only be cancelled"):
        as_user(world, world.owner, f"update training_jobs set status = 'cancelled', {change}")


def test_generous_application_policy_still_allows_cancelling_only(world: World) -> None:
    world.database.rows("create policy generous on training_jobs for all using (auth.uid() = user_id)")
    world.database.rows("create policy generous on notifications for all using (auth.uid() = user_id)")
    for statement in (
        "update training_jobs set status = 'completed'",
        "update training_jobs set progress = 50",
        "update notifications set title = 'x'",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            as_user(world, world.owner, statement)


def test_other_users_cannot_cancel_a_job(world: World) -> None:
    before = world.database.job(world.job)
    as_user(world, world.stranger, "update training_jobs set status = 'cancelled'")
    (answer,) = as_user(world, world.stranger, "select cancel_training_job(%s) as done", world.job)
    assert answer == {"done": False}
    assert world.database.job(world.job) == before


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("status", "running"),
        ("status", "completed"),
        ("external_job_id", "another-job-of-runpod"),
        ("created_at", "2001-01-01"),
        ("created_at", "2101-01-01"),
        ("created_at", "infinity"),
        ("started_at", "2001-01-01"),
        ("final_cost", 0),
        ("user_id", None),
        ("dataset_id", None),
    ],
)
def test_new_job_must_be_queued_last_on_a_dataset_of_its_user(world: World, column: str, value: Any) -> None:
    owner = Actor("authenticated", world.owner)
    strangers: Row = {"user_id": str(world.stranger), "dataset_id": str(world.database.dataset(world.stranger))}
    fine = _INSERTED["queue"]
    assert may_insert(world, owner, "training_jobs", fine)
    assert not may_insert(world, owner, "training_jobs", fine | {column: strangers.get(column, value)})


def test_dataset_cannot_change_its_owner(world: World) -> None:
    owner = Actor("authenticated", world.owner)
    assert world.attempt(owner, "update datasets set user_id = %s", world.stranger) is None
    assert world.attempt(owner, "update datasets set name = 'Quaggas'") == 1


# ── through the REST API, with real tokens ──────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Rest:
    """Two signed-in users, nobody, and the service, at one project; the first user has a job."""

    owner: httpx.Client
    stranger: httpx.Client
    anon: httpx.Client
    service: httpx.Client
    owner_id: str
    job: str


@pytest.fixture
def rest(supabase: Project) -> Iterator[Rest]:
    owner_id, stranger_id = (supabase.create_user(f"{uuid4().hex}@example.com") for _ in range(2))
    with (
        supabase.client(owner_id) as owner,
        supabase.client(stranger_id) as stranger,
        httpx.Client(base_url=supabase.url, headers={"apikey": supabase.publishable_key}, trust_env=False) as anon,
        supabase.client() as service,
    ):
        dataset, job = str(uuid4()), str(uuid4())
        add(
            owner,
            "datasets",
            id=dataset,
            user_id=owner_id,
            name="Zebras",
            storage_path=dataset,
            file_name="z",
            file_size=1,
        )
        add(owner, "training_jobs", **job_row(job, owner_id, dataset))
        add(service, "metrics_points", job_id=job, epoch=1, step=1, training_loss=1, learning_rate=0.1)
        yield Rest(owner, stranger, anon, service, owner_id, job)
        service.delete(f"/rest/v1/training_jobs?id=eq.{job}")


def job_row(job: str, user: str, dataset: str, **columns: Any) -> Row:
    return {
        "id": job, "user_id": user, "dataset_id": dataset, "preset_id": "fast", "hyperparameters": {},
        "gpu_config": {}, "total_epochs": 1, "estimated_total_cost": 1, "status": "queued", **columns,
    }  # fmt: skip


def add(client: httpx.Client, table: str, **row: Any) -> None:
    client.post(f"/rest/v1/{table}", json=row).raise_for_status()


@pytest.mark.fault(8)
def test_user_cancels_through_rest_as_the_application_does(rest: Rest) -> None:
    wish = {"status": "cancelled", "completed_at": "2026-02-24T12:00:00.000Z", "final_cost": 0}
    path = f"/rest/v1/training_jobs?id=eq.{rest.job}"
    as_rows = {"prefer": "return=representation"}
    assert rest.stranger.patch(path, json=wish, headers=as_rows).json() == []
    assert rest.owner.patch(path, json={**wish, "progress": 100}).status_code == httpx.codes.FORBIDDEN
    assert rest.owner.patch(path, json={"status": "completed"}).status_code == httpx.codes.FORBIDDEN
    (row,) = rest.owner.patch(path, json=wish, headers=as_rows).json()
    assert row["status"] == "cancelled"
    assert rest.owner.patch(path, json=wish, headers=as_rows).json() == []


def test_rest_shows_rows_to_their_owner_only(rest: Rest) -> None:
    for table, column in (("training_jobs", "id"), ("metrics_points", "job_id")):
        path = f"/rest/v1/{table}?select={column}&{column}=eq.{rest.job}"
        assert rest.owner.get(path).json() == [{column: rest.job}]
        assert rest.stranger.get(path).json() == []
        # Where a project granted tables to everybody, policies hide the rows.
        anons = rest.anon.get(path).json()
        assert anons == [] or anons["code"] == "42501"


def test_rest_accepts_only_notifications_of_the_applications_routes(rest: Rest) -> None:
    notice = {"user_id": rest.owner_id, "type": "job_queued", "title": "Queued", "message": "It waits."}
    add(rest.owner, "notifications", **notice)
    refused = [
        rest.owner.post("/rest/v1/notifications", json=notice | {"type": "job_completed"}),
        rest.stranger.post("/rest/v1/notifications", json=notice),
        rest.anon.post("/rest/v1/notifications", json=notice),
    ]
    assert all(answer.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN} for answer in refused)
    path = f"/rest/v1/notifications?user_id=eq.{rest.owner_id}"
    (read,) = rest.owner.patch(path, json={"read": True}, headers={"prefer": "return=representation"}).json()
    assert read["read"] is True
    assert rest.owner.patch(path, json={"title": "Forged"}).status_code == httpx.codes.FORBIDDEN


def test_rest_refuses_worker_functions_and_tables_to_users(rest: Rest) -> None:
    arguments = {"worker": "w", "max_jobs": 1, "lease_seconds": 60}
    for client in (rest.owner, rest.anon):
        assert client.post("/rest/v1/rpc/claim_training_jobs", json=arguments).is_client_error
        # The local Supabase grants every table to every role once more when it starts; row level security holds.
        seen = client.get("/rest/v1/training_runs")
        assert seen.is_client_error or seen.json() == []
    (job,) = rest.service.get(f"/rest/v1/training_jobs?id=eq.{rest.job}").json()
    assert job["status"] == "queued"


# ── buckets ─────────────────────────────────────────────────────────────────────────────────────────


def test_buckets_are_as_documented_and_closed_to_anon(rest: Rest) -> None:
    documented = table_under(_PAGE, "Buckets")
    found = {}
    for bucket in rest.service.get("/storage/v1/bucket").json():
        name = bucket["name"]
        if f"`{name}`" not in documented:
            continue
        put = rest.service.post(f"/storage/v1/object/{name}/{rest.owner_id}/probe.json", json={})
        put.raise_for_status()
        seen = rest.anon.post(f"/storage/v1/object/list/{name}", json={"prefix": rest.owner_id, "limit": 10})
        read = rest.anon.get(f"/storage/v1/object/{name}/{rest.owner_id}/probe.json")
        public = rest.anon.get(f"/storage/v1/object/public/{name}/{rest.owner_id}/probe.json")
        written = rest.anon.post(f"/storage/v1/object/{name}/{rest.owner_id}/other.json", json={})
        closed = read.is_error and public.is_error and written.is_error and (seen.is_error or seen.json() == [])
        found[f"`{name}`"] = {
            "public": "yes" if bucket["public"] else "no",
            "largest file": int(bucket["file_size_limit"]),
            "types": set(bucket["allowed_mime_types"]),
            "anon": _NOTHING if closed else "open",
        }
        rest.service.request("DELETE", f"/storage/v1/object/{name}", json={"prefixes": [f"{rest.owner_id}/probe.json"]})
    assert found == {
        name: cells | {"largest file": in_bytes(cells["largest file"]), "types": set(cells["types"].split(", "))}
        for name, cells in documented.items()
    }


def in_bytes(size: str) -> int:
    number, unit = size.split()
    return int(number) * _UNIT_BYTES[unit]


def test_no_function_is_executable_by_public(world: World) -> None:
    """A function that a later migration adds and forgets to revoke would be everybody's."""
    left = world.database.rows(
        "select proname from pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner)))"
        " where pronamespace = 'public'::regnamespace and grantee = 0"
    )
    assert left == []


def print_table(heading: str, found: dict[str, dict[str, str]]) -> None:
    columns = list(next(iter(found.values())))
    print(f"\n| {heading} | {' | '.join(columns)} |")
    for name, cells in found.items():
        print(f"| {name} | {' | '.join(cells.values())} |")


def test_documented_query_finds_policies_open_to_every_user(database: str) -> None:
    (query,) = sql_of_page("rights.md")
    opened = "create policy {} on public.datasets for select to {} using (true)"
    with psycopg.connect(database, autocommit=True) as connection:
        assert connection.execute(query.encode()).fetchall() == []
        for role in ("authenticated", "anon", "public", "service_role"):
            connection.execute(opened.format(f"open_to_{role}", role).encode())
        found = {row[2] for row in connection.execute(query.encode()).fetchall()}
    assert found == {"open_to_authenticated", "open_to_anon", "open_to_public"}
