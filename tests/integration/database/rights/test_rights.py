"""Each role may do exactly what docs/rights.md says: every cell of its tables is tried."""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest

from tests.database.rows import Row
from tests.documented import sql_of_page, table_under
from tests.integration.database.rights.world import NOTHING, PAGE, Actor, World, rights_to_table, tables

# A project of before 2026-10-30 granted all new tables and functions to everybody; one of today grants nothing.
_ON_BOTH = pytest.mark.parametrize("world", [False, True], indirect=True, ids=["nothing granted", "all granted"])


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
    assert found == table_under(PAGE, "Tables")


def test_filter_by_id_does_not_reveal_rows_of_other_users(world: World) -> None:
    """A stranger gets the same answer for the id of somebody's job and for an id that nobody has."""
    stranger = Actor("authenticated", world.stranger)
    for job in (world.job, uuid4()):
        assert world.attempt(stranger, "select status from training_jobs where id = %s", job) == []
        assert world.attempt(stranger, "update training_jobs set status = 'cancelled' where id = %s", job) == 0


def may_call(world: World, actor: Actor, function: Row) -> bool:
    """Whether the actor may execute the function; its answer for null arguments does not matter."""
    arguments = ", ".join(f"null::{kind}" for kind in function["kinds"])
    try:
        answer = world.attempt(actor, f"select public.{function['name']}({arguments})")
    except psycopg.Error:
        return True
    return answer is not None


@_ON_BOTH
@pytest.mark.fault(60)
def test_function_rights_are_as_documented(world: World) -> None:
    """The key that the GPU gets may call three functions, which require a run's token, and read no table."""
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
            name: "yes" if may_call(world, actor, function) else NOTHING for name, actor in actors.items()
        }
        for function in functions
    }
    print_table("function", found)
    documented = {name: cells for names, cells in table_under(PAGE, "Functions").items() for name in names.split(", ")}
    assert found == documented


def test_wrong_run_token_is_refused(world: World) -> None:
    anon = Actor("anon")
    run = world.database.row("select execution_id from training_runs")
    refused = world.attempt(anon, "select check_in_run('wrong', 'runpod-1', %s) as answer", run["execution_id"])
    assert refused == [{"answer": {"may_train": False, "reason": "unknown_token"}}]
    for call in ("request_upload('wrong', %s, '[{}]')", "upload_grant('wrong', %s)"):
        (answer,) = world.attempt(anon, f"select {call} as answer", run["execution_id"])  # type: ignore[misc]
        assert answer["answer"]["reason"] == "unknown_token"


def test_no_function_is_executable_by_public(world: World) -> None:
    """Postgres lets everybody execute a new function until a migration revokes it."""
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
