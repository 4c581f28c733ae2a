"""The sandbox's REST API answers as a real PostgREST does; the expected answers were recorded there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import psycopg
import pytest

from lora_worker.database.functions import SCHEMA_VERSION, WORKER_SCHEMA_VERSION
from lora_worker.database.rest import Rest
from lora_worker.errors import ServiceRefusedError, ServiceUnavailableError
from sandbox.supabase import LocalSupabase
from tests.conftest import SANDBOX

_FUNCTIONS = """
create function public.fail_with(code text) returns int language plpgsql as $$
begin
  raise exception using errcode = code, message = 'it broke', detail = 'the detail', hint = 'the hint';
end $$;
create function public.want_a_table() returns int language plpgsql as $$
begin return (select count(*) from public.not_there); end $$;
create function public.write_it() returns int language sql as $$
  insert into public.training_terms (document, written_by) values ('{}', 'x') returning 1 $$;
create function public.limits() returns jsonb language sql as $$
  select jsonb_build_object('statement', current_setting('statement_timeout'), 'lock', current_setting('lock_timeout'))
$$;
create function public.rows_of(n int) returns setof int language sql as $$ select generate_series(1, n) $$;
create function public.array_of(n int) returns jsonb language sql as $$
  select jsonb_agg(i) from generate_series(1, n) i $$;
create table public.made_today (id int);
create function public.made_today_too() returns int language sql as $$ select 1 $$;
grant execute on function fail_with, want_a_table, write_it, limits, rows_of, array_of
  to anon, authenticated, service_role;
"""

# (SQLSTATE, HTTP status of PostgREST)
_CODES = [
    *(("08006", 503), ("25006", 405), ("25P03", 500), ("28000", 403), ("40001", 500), ("40P01", 500)),
    *(("53100", 503), ("53400", 500), ("54001", 500), ("55P03", 500), ("57014", 500), ("57P01", 503)),
    *(("58030", 500), ("XX000", 500), ("P0001", 400), ("P0002", 500), ("21000", 500), ("0A000", 400)),
    *(("22P02", 400), ("23502", 400), ("23503", 409), ("23505", 409), ("23514", 400), ("WK001", 400)),
    *(("PT400", 400), ("PT409", 409), ("PT503", 503)),
]


@pytest.fixture(scope="module")
def project() -> Iterator[LocalSupabase]:
    with LocalSupabase.start(SANDBOX) as started:
        with psycopg.connect(started.database_url, autocommit=True) as connection:
            connection.execute(_FUNCTIONS.encode())
        yield started


@pytest.fixture
def service(project: LocalSupabase) -> Iterator[httpx.Client]:
    with project.client() as client:
        yield client


def as_anon(project: LocalSupabase) -> httpx.Client:
    return httpx.Client(base_url=project.url, headers={"apikey": project.publishable_key}, timeout=60, trust_env=False)


def call(client: httpx.Client, function: str, **arguments: Any) -> httpx.Response:
    return client.post(f"/rest/v1/rpc/{function}", json=arguments)


@pytest.mark.parametrize(("code", "status"), _CODES, ids=[code for code, _ in _CODES])
def test_database_error_has_its_code_and_postgrests_status(service: httpx.Client, code: str, status: int) -> None:
    answer = call(service, "fail_with", code=code)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["message"].endswith("it broke")
    assert (answer.json()["details"], answer.json()["hint"]) in {("the detail", "the hint"), ("the detail", None)}


def test_table_missing_inside_a_function_is_a_database_error(service: httpx.Client) -> None:
    answer = call(service, "want_a_table")
    assert (answer.status_code, answer.json()["code"]) == (404, "42P01")


def test_function_called_by_get_cannot_write(service: httpx.Client) -> None:
    answer = service.get("/rest/v1/rpc/write_it")
    assert (answer.status_code, answer.json()["code"]) == (405, "25006")


def test_statement_timeouts_follow_the_role(project: LocalSupabase, service: httpx.Client) -> None:
    assert call(service, "limits").json() == {"statement": "8s", "lock": "8s"}
    with as_anon(project) as anon:
        assert call(anon, "limits").json() == {"statement": "3s", "lock": "8s"}


def test_set_of_rows_is_cut_at_1000_but_a_jsonb_array_is_not(service: httpx.Client) -> None:
    assert len(call(service, "rows_of", n=1500).json()) == 1000
    assert len(call(service, "array_of", n=1500).json()) == 1500


@pytest.mark.parametrize("path", ["made_today", "rpc/made_today_too"])
def test_new_tables_and_functions_are_granted_to_nobody(
    project: LocalSupabase, service: httpx.Client, path: str
) -> None:
    assert service.get(f"/rest/v1/{path}").json()["code"] == "42501"
    with as_anon(project) as anon:
        assert anon.get(f"/rest/v1/{path}").json()["code"] == "42501"


@pytest.mark.parametrize("role", ["anon", "service_role"])
def test_expired_key_is_refused_as_expired(project: LocalSupabase, role: str) -> None:
    keys = project.anon_jwt if role == "anon" else project.service_role_jwt
    claims = jwt.decode(str(keys), options={"verify_signature": False})
    expired = jwt.encode(claims | {"exp": int(time.time()) - 60}, project.jwt_secret, algorithm="HS256")
    headers = {"apikey": expired, "authorization": f"Bearer {expired}"}
    answer = httpx.post(f"{project.url}/rest/v1/rpc/limits", headers=headers, json={}, trust_env=False)
    assert (answer.status_code, answer.json()["code"], answer.json()["message"]) == (401, "PGRST303", "JWT expired")


@pytest.mark.parametrize("status", [200, 502, 504])
async def test_html_page_of_the_gateway_counts_as_an_outage(project: LocalSupabase, status: int) -> None:
    project.answer_with_pages("/rest/v1/rpc/", status=status, times=1)
    async with httpx.AsyncClient() as http:
        rest = Rest(project.url, project.secret_key, http=http)
        with pytest.raises(ServiceUnavailableError):
            await rest.call(WORKER_SCHEMA_VERSION, {})
        assert await rest.call(WORKER_SCHEMA_VERSION, {}) == SCHEMA_VERSION


async def test_only_the_secret_key_can_arm_gateway_pages(project: LocalSupabase) -> None:
    order = {"prefix": "/", "status": 200, "times": 9}
    with as_anon(project) as anon:
        assert anon.post("/sandbox/pages", json=order).status_code == 404
    async with httpx.AsyncClient() as http:
        assert await Rest(project.url, project.secret_key, http=http).call(WORKER_SCHEMA_VERSION, {}) == SCHEMA_VERSION


async def test_revoked_right_is_named_with_the_grant_that_restores_it(project: LocalSupabase) -> None:
    with psycopg.connect(project.database_url, autocommit=True) as connection:
        connection.execute("revoke execute on function worker_schema_version from service_role")
        try:
            async with httpx.AsyncClient() as http:
                with pytest.raises(
                    ServiceRefusedError, match=r"grant execute on function public\.worker_schema_version"
                ):
                    await Rest(project.url, project.secret_key, http=http).call(WORKER_SCHEMA_VERSION, {})
        finally:
            connection.execute("grant execute on function worker_schema_version to service_role")
