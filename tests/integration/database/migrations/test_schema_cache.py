"""If REST's schema cache is stale, the worker says so instead of reporting a missing migration."""

from __future__ import annotations

from pathlib import Path

import httpx
import psycopg
import pytest
from pydantic import TypeAdapter
from typer.testing import CliRunner

from lora_worker.commands.cli import app
from lora_worker.database.function import Function, schema_marker
from lora_worker.database.functions import SCHEMA_VERSION, WORKER_SCHEMA_VERSION
from lora_worker.database.migrations import migrate
from lora_worker.database.rest import Rest
from lora_worker.errors import SchemaCacheError, SchemaMissingError
from sandbox.supabase import LocalSupabase
from sandbox.supabase.postgres import Postgres

_MARKER = schema_marker(SCHEMA_VERSION)
_ASK = f"select d.{_MARKER} from public.datasets d limit 0".encode()
_LATER = Function("came_later", TypeAdapter(int), {})


def test_migrating_adds_the_marker_column_to_datasets(postgres: Postgres) -> None:
    bare = postgres.create_template(migrated=False)
    with postgres.clone(bare) as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute(b"create table public.datasets (id uuid primary key)")
        with pytest.raises(psycopg.errors.UndefinedColumn):
            connection.execute(_ASK)
        connection.execute(b"drop table public.datasets")
        migrate(url)
        connection.execute(b"set role service_role")
        assert connection.execute(_ASK).fetchall() == []
        connection.execute(b"set role authenticated")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(_ASK)


async def test_function_missing_from_rests_schema_cache_is_explained(local_supabase: LocalSupabase) -> None:
    async with httpx.AsyncClient() as http:
        rest = Rest(local_supabase.url, local_supabase.secret_key, http=http)
        # The local REST server reads the schema at its first request.
        await rest.call(WORKER_SCHEMA_VERSION, {})
        with psycopg.connect(local_supabase.database_url, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute("create function public.came_later() returns int language sql as $$ select 1 $$")
            cursor.execute("grant execute on function public.came_later() to service_role")
            with pytest.raises(SchemaCacheError, match="does not know came_later yet"):
                await rest.call(_LATER, {})
            cursor.execute(f"drop function public.{_MARKER}".encode())
            with pytest.raises(SchemaMissingError, match="lora-worker migrate") as caught:
                await rest.call(_LATER, {})
            assert not isinstance(caught.value, SchemaCacheError)
            local_supabase.restart_rest()
            assert await rest.call(_LATER, {}) == 1


def test_migrate_waits_until_rest_serves_the_new_schema(
    local_supabase: LocalSupabase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The local server reads the schema only at its start; a hosted one reloads it on the notification."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUPABASE_URL", local_supabase.url)
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", local_supabase.secret_key)
    arguments = ["migrate", "--database-url", local_supabase.database_url]
    with psycopg.connect(local_supabase.database_url, autocommit=True) as connection:
        connection.execute("drop function public.put_off_dataset")
        local_supabase.restart_rest()
        with local_supabase.client() as client:
            client.get("/rest/v1/datasets?limit=0").raise_for_status()
        done = CliRunner().invoke(app, [*arguments, "--wait-seconds", "3"], catch_exceptions=False)
        assert done.exit_code == 1
        assert "it does not know put_off_dataset yet" in done.output
        local_supabase.restart_rest()
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0
        assert "waiting up to" not in done.output
