"""Every answer of Supabase's REST API has one meaning: retry, repair the setup, or a refused request."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest
import respx
from tenacity import wait_none

from lora_contract.rest_errors import read_error
from lora_worker.database import functions, rest
from lora_worker.database.calls import DatabaseCalls
from lora_worker.database.function import schema_marker
from lora_worker.database.functions import SCHEMA_VERSION
from lora_worker.database.rest import ANON, SERVICE_ROLE, explain
from lora_worker.database.rows import Lease
from lora_worker.errors import (
    SchemaCacheError,
    SchemaMismatchError,
    SchemaMissingError,
    ServiceError,
    ServiceRefusedError,
    ServiceUnavailableError,
    ValueRefusedError,
)

URL = "https://p.supabase.co"
ROW_TEXT = "a user's words"
"""A text in every message of the database: Postgres quotes values, and no exception may contain one."""

WAIT, MEND, REFUSED, VALUE = ServiceUnavailableError, SchemaMissingError, ServiceRefusedError, ValueRefusedError

# (HTTP status as PostgREST 12 to 14 gives it, code, what follows, its status or words of its sentence)
CODES = [
    (503, "08006", WAIT, "08006"),
    (405, "25006", WAIT, "read-only"),
    (500, "25P03", WAIT, "25P03"),
    (500, "25P04", WAIT, "25P04"),
    (400, "26000", WAIT, "26000"),
    (500, "40001", WAIT, "40001"),
    (500, "40P01", WAIT, "40P01"),
    (400, "42P05", WAIT, "42P05"),
    (503, "53100", WAIT, "disk is full"),
    (503, "53300", WAIT, "no connection left"),
    (500, "53400", WAIT, "53400"),
    (500, "54001", WAIT, "54001"),
    (500, "55P03", WAIT, "lock"),
    (500, "55006", WAIT, "55006"),
    (500, "57014", WAIT, "longer than the database allows"),
    (503, "57P01", WAIT, "57P01"),
    (500, "57P03", WAIT, "57P03"),
    (500, "58030", WAIT, "58030"),
    (500, "F0000", WAIT, "F0000"),
    (500, "HV00N", WAIT, "HV00N"),
    (500, "XX000", WAIT, "XX000"),
    (500, "XX001", WAIT, "XX001"),
    (503, "PT503", WAIT, "PT503"),
    (429, "PT429", WAIT, "PT429"),
    (503, "PGRST000", WAIT, "PGRST000"),
    (503, "PGRST001", WAIT, "PGRST001"),
    (503, "PGRST002", WAIT, "can't load the schema"),
    (504, "PGRST003", WAIT, "PGRST003"),
    (500, "PGRST300", WAIT, "PGRST300"),
    (500, "PGRSTX00", WAIT, "PGRSTX00"),
    (404, "42883", MEND, "lora-worker migrate"),
    (404, "42P01", MEND, "lora-worker migrate"),
    (400, "42703", MEND, "lora-worker migrate"),
    (300, "PGRST203", MEND, "lora-worker migrate"),
    (406, "PGRST106", MEND, "expose the schema public"),
    (401, "PGRST301", REFUSED, 401),
    (401, "PGRST302", REFUSED, 401),
    (401, "PGRST303", REFUSED, 401),
    (403, "42501", REFUSED, 403),
    (401, "42501", REFUSED, 403),
    (400, "PT400", VALUE, 400),
    (409, "PT409", REFUSED, 400),
    (400, "22P02", VALUE, 400),
    (400, "22P05", VALUE, 400),
    (400, "22003", VALUE, 400),
    (400, "23502", VALUE, 400),
    (409, "23503", VALUE, 400),
    (409, "23505", VALUE, 400),
    (400, "23514", VALUE, 400),
    (400, "21000", REFUSED, 400),
    (400, "0A000", REFUSED, 400),
    (400, "P0001", REFUSED, 400),
    (500, "P0002", REFUSED, 400),
    (400, "PGRST102", REFUSED, 400),
]


def explained(status: int, body: Any) -> ServiceError:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return explain("settle_run", read_error(status, content), SERVICE_ROLE)


def check(error: ServiceError, kind: type[ServiceError], about: int | str) -> None:
    assert type(error) is kind
    if isinstance(error, ServiceRefusedError):
        assert error.status == about
    else:
        assert str(about) in str(error)
    assert ROW_TEXT not in str(error)


@pytest.mark.parametrize(("status", "code", "kind", "about"), CODES, ids=lambda value: str(value))
def test_each_database_error_code_has_its_kind_of_error(
    status: int, code: str, kind: type[ServiceError], about: int | str
) -> None:
    body = {"code": code, "message": f'invalid: "{ROW_TEXT}"', "details": ROW_TEXT, "hint": ROW_TEXT}
    check(explained(status, body), kind, about)


@pytest.mark.parametrize(
    ("status", "body", "kind", "about"),
    [
        (401, {"message": "Invalid API key", "hint": ROW_TEXT}, REFUSED, 401),
        (403, {"message": "Unauthorized"}, REFUSED, 401),
        (401, {"code": 401, "message": "Unregistered API key"}, REFUSED, 401),
        (401, {"code": "401", "message": "Unregistered API key"}, REFUSED, 401),
        # The gateway turns newer keys into short-lived tokens, and its clock may be ahead.
        (401, {"code": "PGRST303", "message": "JWT issued at future"}, WAIT, "PGRST303"),
        (401, {"code": "PGRST303", "message": "JWT expired"}, REFUSED, 401),
        # A challenge or block page in front of the project does not mean that the key is wrong.
        (403, b"<html><title>Just a moment...</title>", WAIT, "HTTP 403"),
        (402, {"message": "Service for this project is restricted"}, WAIT, "restricted"),
        (404, {"message": "no Route matched with those values"}, WAIT, "SUPABASE_URL"),
        (404, b"<html>", WAIT, "SUPABASE_URL"),
        (302, b"", WAIT, "HTTP 302"),
        (408, b"", WAIT, "HTTP 408"),
        (413, b"<html>Request Entity Too Large", VALUE, 400),
        (429, {"message": "Too many requests"}, WAIT, "HTTP 429"),
        (500, b"", WAIT, "HTTP 500"),
        (502, b"<html>Bad gateway", WAIT, "HTTP 502"),
        (503, {"message": "name resolution failed"}, WAIT, "HTTP 503"),
        (520, b"<html>", WAIT, "HTTP 520"),
        (540, {"message": "Project paused"}, WAIT, "paused"),
        (500, b"[" * 100_000, WAIT, "HTTP 500"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_gateway_errors_are_never_blamed_on_a_job(
    status: int, body: Any, kind: type[ServiceError], about: int | str
) -> None:
    check(explained(status, body), kind, about)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "permission denied for function settle_run",
            ["service_role may not call settle_run", "grant execute on function public.settle_run to service_role"],
        ),
        (
            "permission denied for function training_bill_run",
            ["grant execute on function public.training_bill_run to its owner"],
        ),
        (
            "permission denied for table training_jobs",
            ["the table training_jobs", "grant select, insert, update, delete on table public.training_jobs to"],
        ),
        ("permission denied for sequence s", ["grant usage on sequence public.s to"]),
        ("permission denied for schema auth", ["grant usage on schema auth to"]),
        ('new row violates row-level security policy for table "cost_records"', ["policies", "cost_records"]),
        (f"a job of {ROW_TEXT} can only be cancelled", ["policies and triggers"]),
    ],
)
def test_missing_right_is_named_with_the_grant_that_restores_it(text: str, words: list[str]) -> None:
    error = explained(403, {"code": "42501", "message": text})
    assert all(word in str(error) for word in words), error
    assert "KEY" not in str(error)
    assert ROW_TEXT not in str(error)


def test_trainers_missing_right_names_a_grant_to_anon() -> None:
    denied = read_error(401, b'{"code": "42501", "message": "permission denied for function check_in_run"}')
    assert "grant execute on function public.check_in_run to anon" in str(explain("check_in_run", denied, ANON))


# ── answers that are none ───────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def queue_at(**answer: Any) -> AsyncIterator[DatabaseCalls]:
    async with httpx.AsyncClient() as http, respx.mock(base_url=URL) as api:
        api.route().respond(**answer)
        queue = DatabaseCalls(URL, "sb_secret_x", worker="w", lease_seconds=60, http=http)
        queue._wait = wait_none()
        yield queue


# Constants, since they are part of test names, which must be equal in all processes of pytest-xdist.
ID, OTHER_ID = UUID(int=1), UUID(int=2)
NOW = datetime(2026, 11, 26, tzinfo=UTC)
CALLS: dict[str, Callable[[DatabaseCalls], Awaitable[Any]]] = {
    "worker_schema_version": lambda q: q.check_schema(),
    "publish_training_terms": lambda q: q.publish_terms({}),
    "estimate_training_job": lambda q: q.estimate_job(ID),
    "training_run_speed": lambda q: q.training_run_speed("b", "g"),
    "claim_training_jobs_2": lambda q: q.claim(1, None),
    "adopt_training_runs_3": lambda q: q.adopt(1, ["runpod"]),
    "renew_training_runs_2": lambda q: q.renew([Lease(ID, ID)]),
    "release_training_runs": lambda q: q.release(),
    "begin_handling": lambda q: q.begin_handling(ID, ID),
    "pass_breakers": lambda q: q.pass_breakers(ID, ID, base_model="b", endpoint="e", look_again_seconds=1),
    "note_endpoint_2": lambda q: q.note_endpoint(
        launcher="r", endpoint="e", state="well", problem=None, without_gpu=False
    ),
    "training_places": lambda q: q.training_places(["e"], base_model="b"),
    "training_places_of_runs": lambda q: q.training_places_of_runs(["e"], {ID: "b"}),
    "put_back_run": lambda q: q.put_back_run(ID, ID, reason="full", seconds=1),
    "withdraw_launch": lambda q: q.withdraw_launch(ID, ID, pass_over_seconds=1),
    "resume_training": lambda q: q.resume_training(None),
    "begin_launch_2": lambda q: q.begin_launch(
        ID, ID, launcher="r", endpoint="e", slots=1, token_sha256="x", launched_with={}
    ),
    "record_launch": lambda q: q.record_launch(ID, ID, launcher="r", endpoint="e", external_job_id="x"),
    "grant_upload": lambda q: q.grant_upload(ID, ID, request=[], sealed_urls=""),
    "record_progress": lambda q: q.record_progress([]),
    "settle_run_2": lambda q: q.settle(ID, ID, {}),
    "claim_dataset": lambda q: q.claim_dataset(),
    "renew_dataset_claim": lambda q: q.renew_dataset_claim(ID, ID),
    "put_off_dataset": lambda q: q.put_off_dataset(ID, ID, seconds=1),
    "settle_dataset": lambda q: q.settle_dataset(ID, ID, {}),
    "stray_launches": lambda q: q.stray_launches(1),
    "note_owned_launches": lambda q: q.note_owned_launches([], launcher="r", endpoint="e"),
    "close_launches": lambda q: q.close_launches([]),
    "abandoned_uploads": lambda q: q.abandoned_uploads("b", 1),
    "report_worker_2": lambda q: q.report_worker({}),
    "claim_serving_errand": lambda q: q.claim_serving_errand(launcher="r", endpoint="e"),
    "record_serving_errand": lambda q: q.record_serving_errand(ID, ID, endpoint="e", external_job_id="x"),
    "end_serving_errand": lambda q: q.end_serving_errand(
        ID, ID, removed=[], aliases=[], problem=None, gpu_seconds=None, replace_workers=False, no_volume=False
    ),
    "claim_webhook_deliveries": lambda q: q.claim_webhook_deliveries(["e"], 1, 60),
    "note_webhook_delivery": lambda q: q.note_webhook_delivery(
        "msg_1",
        "e",
        ID,
        {"delivered": True, "gone": False, "status": 200, "problem": None, "retry_after_seconds": None},
    ),
    "replay_webhook_events": lambda q: q.replay_webhook_events({"failed": True}),
    "enable_webhook_endpoint": lambda q: q.enable_webhook_endpoint("e"),
    "training_webhook_state": lambda q: q.webhook_state(),
    "claim_operator_notice": lambda q: q.claim_operator_notice("k", 60),
    "queue_health": lambda q: q.health(),
    "find_training_user": lambda q: q.find_training_user("a@example.com"),
    "submit_training_job": lambda q: q.submit_training_job({}, {}),
    "training_published_run": lambda q: q.training_published_run(ID),
    "training_init_adapter": lambda q: q.training_init_adapter(ID, ID),
    "training_user_state": lambda q: q.training_user_state(ID),
    "stop_user_training": lambda q: q.stop_user_training(ID),
    "training_user_objects": lambda q: q.training_user_objects(ID, "b", 1),
    "erase_training_user": lambda q: q.erase_training_user(ID),
    "training_ended_trials": lambda q: q.training_ended_trials(),
    "training_trial_files": lambda q: q.training_trial_files(ID),
    "remove_training_trial": lambda q: q.remove_training_trial(ID),
    "training_costs": lambda q: q.training_costs(NOW, NOW, "day"),
    "training_failures": lambda q: q.training_failures(NOW),
    "training_budget_state": lambda q: q.training_budget_state(),
    "set_training_budget": lambda q: q.set_training_budget(ID, 1),
    "remove_training_budget": lambda q: q.remove_training_budget(ID),
    "training_project_report": lambda q: q.project_report(),
    "training_versions": lambda q: q.training_versions({}),
    "list_training_aliases": lambda q: q.list_training_aliases(),
    "training_alias_history": lambda q: q.training_alias_history("zebras"),
    "move_training_alias": lambda q: q.move_training_alias(
        {"name": "z", "run_id": str(ID), "adapter": "adapter-1", "moved_by": "me", "number": 0, "restores": None}
    ),
    "claim_endpoint_release": lambda q: q.claim_endpoint_release(60, 1800),
    "note_endpoint_release": lambda q: q.note_endpoint_release({"done": True}),
    "list_training_jobs": lambda q: q.list_training_jobs({}),
    "training_job_details": lambda q: q.training_job_details(ID),
    "training_finished_adapters": lambda q: q.finished_adapters(),
    "cancel_training_job": lambda q: q.cancel_training_job(ID),
    "retry_training_job": lambda q: q.retry_training_job(ID),
    "hold_training": lambda q: q.hold_training(None, "why"),
    "release_training": lambda q: q.release_training(None),
    "drain_training_workers": lambda q: q.drain_training_workers(None),
}

NO_ANSWERS: list[dict[str, Any]] = [
    {"html": f"<html><title>{ROW_TEXT}</title></html>"},
    {"content": b""},
    {"json": ROW_TEXT},
    {"json": 1.5},
    {"content": b"[" * 100_000},
]


def test_every_database_function_is_covered() -> None:
    assert set(CALLS) == {function.name for function in functions.WORKER_FUNCTIONS}


@pytest.mark.parametrize("answer", NO_ANSWERS, ids=lambda answer: str(answer)[:20])
@pytest.mark.parametrize("function", CALLS)
async def test_answer_that_is_not_the_functions_counts_as_an_outage(function: str, answer: dict[str, Any]) -> None:
    async with queue_at(**answer) as queue:
        with pytest.raises(ServiceUnavailableError, match=function) as caught:
            await CALLS[function](queue)
    assert ROW_TEXT not in str(caught.value)


@pytest.mark.parametrize(
    ("function", "answer"),
    [
        ("publish_training_terms", 1),
        ("publish_training_terms", "true"),
        ("settle_run_2", "paused"),
        ("begin_launch_2", {"may_launch": "yes", "reason": None}),
        ("record_progress", [{"run_id": str(ID), "applied": 1}]),
        ("renew_training_runs_2", []),
        ("renew_training_runs_2", [{"run_id": str(OTHER_ID), "held": True}]),
        ("stray_launches", [{"run_id": str(ID)}]),
        ("queue_health", {"queued": "many"}),
    ],
    ids=str,
)
async def test_unknown_value_counts_as_an_outage(function: str, answer: Any) -> None:
    async with queue_at(json=answer) as queue:
        with pytest.raises(ServiceUnavailableError):
            await CALLS[function](queue)


async def test_endless_answer_is_read_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "MAX_ANSWER_BYTES", 10_000)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1000
            yield b" " * 1000

    async with queue_at(stream=endless()) as queue:
        with pytest.raises(ServiceUnavailableError):
            await queue.health()
    assert sent < 20_000


# ── functions that REST does not know ───────────────────────────────────────────────────────────────

MARKER = schema_marker(SCHEMA_VERSION)
UNKNOWN = {"code": "PGRST202", "message": "Could not find the function public.worker_schema_version"}


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        # The marker column exists, so only REST's schema cache is stale.
        (200, [], SchemaCacheError, "schema cache"),
        (
            403,
            {"code": "42501", "message": f"permission denied for function {MARKER}"},
            SchemaCacheError,
            "cache",
        ),
        (400, {"code": "42703", "message": f"column datasets.{MARKER} does not exist"}, MEND, "are missing"),
        # REST does not know the application's tables, either.
        (404, {"code": "PGRST205", "message": "Could not find the table"}, MEND, "its schema cache is old"),
        (502, {"message": "bad gateway"}, MEND, "its schema cache is old"),
    ],
)
async def test_missing_function_differs_from_a_stale_schema_cache(
    status: int, body: Any, kind: type[ServiceError], words: str
) -> None:
    async with httpx.AsyncClient() as http, respx.mock(base_url=URL) as api:
        api.post("/rest/v1/rpc/worker_schema_version").respond(404, json=UNKNOWN)
        api.get("/rest/v1/datasets").respond(status, json=body)
        queue = DatabaseCalls(URL, "sb_secret_x", worker="w", lease_seconds=60, http=http)
        with pytest.raises(SchemaMissingError, match=words) as caught:
            await queue.check_schema()
    assert type(caught.value) is kind
    assert ("lora-worker migrate" in str(caught.value)) is (kind is MEND)


@pytest.mark.parametrize(
    ("status", "body", "raised"),
    [
        (200, [], None),
        (400, {"code": "42703", "message": f"column datasets.{MARKER} does not exist"}, SchemaMismatchError),
        (404, {"code": "42883", "message": f"function {MARKER}(datasets) does not exist"}, SchemaMismatchError),
        (503, {"message": "bad gateway"}, ServiceUnavailableError),
    ],
)
async def test_newer_schema_is_accepted_while_it_has_this_versions_marker(
    status: int, body: Any, raised: type[ServiceError] | None
) -> None:
    async with httpx.AsyncClient() as http, respx.mock(base_url=URL) as api:
        api.post("/rest/v1/rpc/worker_schema_version").respond(json=SCHEMA_VERSION + 1)
        asked = api.get("/rest/v1/datasets", params={"select": MARKER, "limit": "0"}).respond(status, json=body)
        queue = DatabaseCalls(URL, "sb_secret_x", worker="w", lease_seconds=60, http=http)
        if raised is None:
            assert await queue.check_schema() == SCHEMA_VERSION + 1
        else:
            with pytest.raises(raised):
                await queue.check_schema()
        assert asked.called


async def test_older_schema_is_refused_with_the_command_to_run() -> None:
    async with httpx.AsyncClient() as http, respx.mock(base_url=URL) as api:
        api.post("/rest/v1/rpc/worker_schema_version").respond(json=0)
        queue = DatabaseCalls(URL, "sb_secret_x", worker="w", lease_seconds=60, http=http)
        with pytest.raises(SchemaMismatchError, match="lora-worker migrate"):
            await queue.check_schema()
