"""Mistakes at the first start end in one sentence that says what to do and shows no secret."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx
from tenacity import wait_none
from typer.testing import CliRunner

from lora_worker.commands.cli import app
from lora_worker.database.calls import DatabaseCalls
from lora_worker.doctor.check import Check
from lora_worker.doctor.examine import examine
from lora_worker.errors import ServiceRefusedError
from lora_worker.launchers.runpod.settings import RunPodSettings
from lora_worker.services import Services, open_services
from tests.commands import check_keys

pytestmark = pytest.mark.usefixtures("no_logging")

SUPABASE, RUNPOD = "https://p.supabase.co", "https://api.runpod.ai/v2/ep"


@pytest.fixture
async def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Services]:
    monkeypatch.chdir(tmp_path)
    # Retries of a call follow without a wait.
    monkeypatch.setattr("lora_worker.database.caller.wait_random_exponential", lambda **_: wait_none())
    settings = RunPodSettings(
        supabase_url=SUPABASE,
        supabase_service_role_key="sb_secret_x",
        supabase_publishable_key="sb_publishable_x",
        gpu_cluster_api_url=RUNPOD,
        gpu_cluster_api_key="rpa_x",
    )
    async with open_services(settings) as opened:
        yield opened


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and output of the command; an exception that escapes it fails the test."""
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    return done.exit_code, done.output


REFUSED_KEYS = [
    (401, {"message": "Invalid API key", "hint": "Double check your Supabase `anon` or `service_role` API key."}),
    (401, {"message": "No API key found in request"}),
    (401, {"message": "Legacy API keys are disabled"}),
    (403, {"message": "Unauthorized"}),
    (401, {"code": 401, "message": "Unregistered API key"}),
    (401, {"code": "PGRST301", "message": "No suitable key or wrong key type"}),
]


@pytest.mark.parametrize(("status", "body"), REFUSED_KEYS, ids=lambda value: str(value))
async def test_wrong_service_key_is_not_reported_as_a_database_outage(status: int, body: dict[str, Any]) -> None:
    async with httpx.AsyncClient() as http, respx.mock(base_url=SUPABASE) as api:
        api.post("/rest/v1/rpc/worker_schema_version").respond(status, json=body)
        queue = DatabaseCalls(SUPABASE, "sb_secret_wrong", worker="w", lease_seconds=60, http=http)
        with pytest.raises(ServiceRefusedError, match="check SUPABASE_SERVICE_ROLE_KEY"):
            await queue.check_schema()


def failing(checks: list[Check]) -> dict[str, str]:
    return {check.subject: check.finding for check in checks if check.ok is False}


async def test_doctor_names_each_key_that_is_refused(services: Services) -> None:
    with respx.mock(assert_all_called=False) as api:
        api.route(host="p.supabase.co").respond(401, json={"message": "Invalid API key"})
        api.route(host="api.runpod.ai").respond(401)
        api.route(host="api.runpod.io").respond(401)
        checks = await examine(services)
    found = failing(checks)
    assert list(found) == ["database", "rights", "endpoint"]
    assert "SUPABASE_SERVICE_ROLE_KEY" in found["database"]
    assert "GPU_CLUSTER_API_KEY" in found["endpoint"]
    assert [check.subject for check in checks if check.ok is None] == [
        "project",
        "storage",
        "launches",
        "aliases",
        "webhooks",
    ]


_NOT_SUPABASE: dict[str, dict[str, Any]] = {
    "no such host": {"side_effect": httpx.ConnectError("secret")},
    "a web page": {"return_value": httpx.Response(200, html="<html>Welcome</html>")},
    "a web page that is not there": {"return_value": httpx.Response(404, html="<html>Not found</html>")},
    "another service": {"return_value": httpx.Response(404, json={"detail": "Not Found"})},
    "a project that sleeps": {"return_value": httpx.Response(540, json={"message": "Project paused"})},
    "functions missing": {
        "return_value": httpx.Response(404, json={"code": "PGRST202", "message": "Could not find the function"})
    },
}


@pytest.mark.parametrize("wrong", _NOT_SUPABASE)
async def test_one_cause_is_reported_once_without_its_consequences(services: Services, wrong: str) -> None:
    with respx.mock(assert_all_called=False) as api:
        api.route(host="p.supabase.co", path__startswith="/rest/").mock(**_NOT_SUPABASE[wrong])
        api.route(host="p.supabase.co", path="/storage/v1/bucket").respond(200, json=[])
        api.route(host="api.runpod.ai").respond(200, json={"workers": {"idle": 1}, "jobs": {}})
        api.route(host="api.runpod.io").respond(401)
        checks = await examine(services)
    assert list(failing(checks)) == ["database"]
    skipped = {check.subject for check in checks if check.ok is None}
    assert skipped == {"project", "rights", "storage", "launches", "aliases", "webhooks"}
    sentences = [f"{check.finding} {check.remedy}" for check in checks if check.ok is not True]
    assert not any("bucket" in words for words in sentences)
    assert any("migrate" in words for words in sentences) is (wrong == "functions missing")
    assert "secret" not in " ".join(sentences)


@pytest.mark.parametrize("body", [[], {"unexpected": True}, [{"id": 1}]], ids=str)
async def test_unexpected_answer_hides_no_other_check(services: Services, body: Any) -> None:
    with respx.mock(assert_all_called=False) as api:
        api.route().respond(200, json=body)
        found = await examine(services)
    assert {check.subject for check in found} == {
        "database",
        "project",
        "rights",
        "storage",
        "endpoint",
        "launches",
        "aliases",
        "webhooks",
        "account",
    }


@pytest.mark.parametrize(
    ("url", "documented"),
    [
        ("foo", 2),
        ("https://p.supabase.co", 2),
        ("postgresql://u:s3cr3t%zz@127.0.0.1/db", 2),
        ("postgresql://u:s3cr3t@[::1/db", 2),
        ("postgresql://u:s3cr3t@.nowhere.invalid/db", 2),
        # A URL as it should be, where nothing can be reached: nothing listens on the port of the discard service.
        ("postgresql://u:s3cr3t@s3cr3t@nowhere.invalid/db", 1),
        ("postgresql://u:s3cr3t@nowhere.invalid:s3cr3t/db", 1),
        ("postgresql://u:s3cr3t@127.0.0.1:9/db", 1),
    ],
    ids=str,
)
def test_wrong_database_url_is_reported_without_quoting_it(url: str, documented: int) -> None:
    """As docs/cli.md says: 2 where the argument is wrong, 1 where the work could not be done."""
    code, output = run("migrate", "--database-url", url)
    assert code == documented
    assert "--database-url" in output
    assert len(output.splitlines()) == 1
    assert not any(part in output for part in ("s3cr3t", "nowhere", "supabase.co", "foo", "127.0.0.1"))


def test_port_in_use_is_named_with_its_variable(environment: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment.setenv("LORA_WORKER_HTTP_PORT", str(taken.getsockname()[1]))
        code, output = run("run")
    assert code == 1
    assert "LORA_WORKER_HTTP_PORT" in output
    assert len(output.splitlines()) == 1


def test_doctor_reports_wrong_settings_as_a_finding(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("SUPABASE_URL", raising=False)
    environment.setenv("LORA_WORKER_SLOTS", "many")
    code, output = run("doctor", "--json")
    check_keys("doctor", json.loads(output))
    (check,) = json.loads(output)
    assert (code, check["subject"], check["ok"]) == (1, "settings", False)
    assert "SUPABASE_URL is missing" in check["finding"]
    assert "LORA_WORKER_SLOTS" in check["finding"]
    assert "lora-worker settings" in check["remedy"]


SAGEMAKER = {
    "LORA_WORKER_LAUNCHER": "sagemaker",
    "LORA_WORKER_SAGEMAKER_REGION": "eu-central-1",
    "LORA_WORKER_SAGEMAKER_ROLE": "arn:aws:iam::123456789012:role/lora",
    "LORA_WORKER_SAGEMAKER_IMAGE": "123456789012.dkr.ecr.eu-central-1.amazonaws.com/lora-trainer:1",
    "LORA_WORKER_SAGEMAKER_S3_PATH": "s3://bucket/lora",
}
GPU_SERVER = {
    "LORA_WORKER_LAUNCHER": "gpu-server",
    "LORA_WORKER_GPU_SERVER_URL": "http://127.0.0.1:8643",
    "LORA_WORKER_GPU_SERVER_KEY": "0123456789abcdef0123456789abcdef",
}
UNOPENED = [
    (SAGEMAKER, {"LORA_WORKER_ENDPOINT_GPU_TYPE": "A40"}, "LORA_WORKER_ENDPOINT_GPU_TYPE: SageMaker has no A40 "),
    (
        SAGEMAKER,
        {"LORA_WORKER_ENDPOINT_GPU_TYPE": "H100", "LORA_WORKER_ENDPOINT_GPU_COUNT": "3"},
        "LORA_WORKER_ENDPOINT_GPU_COUNT: SageMaker has no ",
    ),
    (GPU_SERVER, {"LORA_WORKER_ENDPOINT_GPU_COUNT": "2"}, "LORA_WORKER_ENDPOINT_GPU_COUNT (gpu_count in a routing"),
    ({}, {"LORA_WORKER_ROUTES": "routes.toml"}, "LORA_WORKER_ROUTES: routes.toml, [endpoints.a]: endpoint: is no "),
]  # fmt: skip
"""Settings with an endpoint that can't be opened, what is wrong, and the sentence."""


@pytest.fixture(params=UNOPENED, ids=["gpu-type", "gpu-count", "gpu-server", "table"])
def unopened(request: pytest.FixtureRequest, environment: pytest.MonkeyPatch, no_logging: None) -> str:
    launcher, wrong, sentence = request.param
    Path("routes.toml").write_text("[endpoints.a]\nendpoint = 'a b'\n")
    for name, value in {**launcher, **wrong}.items():
        environment.setenv(name, value)
    return str(sentence)


def test_doctor_names_an_endpoint_it_cant_open_and_checks_the_rest(unopened: str) -> None:
    with respx.mock() as api:
        api.route(host="p.supabase.co").respond(401, json={"message": "Invalid API key"})
        code, output = run("doctor", "--json")
    found = {check["subject"]: check for check in json.loads(output)}
    assert code == 1
    assert found["settings"]["finding"].startswith(unopened)
    assert "check SUPABASE_SERVICE_ROLE_KEY" in str(found["database"])
    assert (found["endpoint"]["ok"], found["endpoint"]["finding"]) == (
        None,
        "not looked at: mend the fault of the settings first",
    )


@pytest.mark.parametrize("command", ["run", "status"])
def test_an_endpoint_that_cant_be_opened_is_a_wrong_setting(unopened: str, command: str) -> None:
    code, output = run(command)
    assert code == 2
    assert output.startswith(f"lora-worker: {unopened}")
    assert len(output.splitlines()) == 1
