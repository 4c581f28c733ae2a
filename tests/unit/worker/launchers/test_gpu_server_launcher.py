"""A GPU server's answers are read within bounds, and its settings are refused where they can't be meant."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import respx

from lora_worker.errors import LaunchInDoubtError, ServiceUnavailableError, SettingsError
from lora_worker.launchers.base import EndCause, EndpointState, LaunchRef, LaunchState, Policy
from lora_worker.launchers.gpu_server.launcher import MAX_LAUNCH_SECONDS, GpuServerLauncher
from lora_worker.launchers.gpu_server.settings import GpuServerSettings
from lora_worker.launchers.registry import load_settings
from tests.unit.worker.variables import SETTINGS

URL = "https://gpu.example.com"
REF = LaunchRef(None, "job-1")
KEY = "a-key-of-the-tests-0123456789abcdef"


@pytest.fixture
async def launcher() -> AsyncIterator[GpuServerLauncher]:
    async with httpx.AsyncClient() as http:
        yield GpuServerLauncher(URL, KEY, http=http)


@pytest.fixture
def api() -> Any:
    with respx.mock(base_url=URL, assert_all_called=False) as mock:
        yield mock


async def test_launch_sends_request_and_limits_in_seconds(launcher: GpuServerLauncher, api: Any) -> None:
    route = api.post("/training/submit").respond(201, json={"external_job_id": "job-1"})
    assert await launcher.launch({"run_id": "r"}, Policy(execution_seconds=60, ttl_seconds=1e12)) == "job-1"
    sent = route.calls.last.request
    assert json.loads(sent.content) == {
        "input": {"run_id": "r"},
        "policy": {"execution_seconds": 60, "ttl_seconds": MAX_LAUNCH_SECONDS},
    }
    assert sent.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"external_job_id": 7}', b'{"external_job_id": "../health"}', b"[" * 9999]
)
async def test_answer_without_a_usable_id_leaves_the_launch_in_doubt(
    launcher: GpuServerLauncher, api: Any, body: bytes
) -> None:
    api.post("/training/submit").respond(201, content=body)
    with pytest.raises(LaunchInDoubtError):
        await launcher.launch({}, Policy(60, 60))


async def test_full_server_is_asked_again_when_it_wishes(launcher: GpuServerLauncher, api: Any) -> None:
    api.post("/training/submit").respond(429, headers={"retry-after": "60"})
    with pytest.raises(ServiceUnavailableError) as caught:
        await launcher.launch({}, Policy(60, 60))
    assert caught.value.retry_after_seconds == 60


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"status": "COMPLETED"}', b'{"status": ["running"]}', b'{"status": "running", "cause": "x"}',
     b'{"status": "completed", "output": ' + b"[" * 70 + b"]" * 70 + b"}"],
)  # fmt: skip
async def test_status_that_can_not_be_read_ends_no_run(launcher: GpuServerLauncher, api: Any, body: bytes) -> None:
    api.get("/training/status/job-1").respond(200, content=body)
    seen = await launcher.observe(REF)
    assert (seen.state, bool(seen.reason)) == (LaunchState.UNKNOWN, True)


@pytest.mark.parametrize("value", [-1, 1e300, "7", None, True, []])
async def test_impossible_seconds_are_none(launcher: GpuServerLauncher, api: Any, value: Any) -> None:
    body = {"status": "failed", "cause": "lost", "execution_seconds": value, "queue_seconds": value}
    api.get("/training/status/job-1").respond(json=body)
    seen = await launcher.observe(REF)
    assert (seen.state, seen.cause) == (LaunchState.FAILED, EndCause.LOST)
    assert (seen.execution_seconds, seen.queue_seconds) == (None, None)


async def test_busy_server_is_well_and_one_without_gpus_says_so(launcher: GpuServerLauncher, api: Any) -> None:
    api.get("/health").respond(json={"gpus": 2, "running": 2, "queued": 3, "problem": None})
    seen = await launcher.health()
    assert (seen.ready, seen.running, seen.jobs_queued, seen.state) == (0, 2, 3, EndpointState.WELL)
    api.get("/health").respond(json={"gpus": 0, "running": "many", "queued": -1})
    assert (await launcher.health()).problem == "it serves no GPU"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("LORA_WORKER_GPU_SERVER_URL", "", "must begin with https://"),
        ("LORA_WORKER_GPU_SERVER_URL", "https://p.supabase.co", "is an address of Supabase or RunPod"),
        ("LORA_WORKER_GPU_SERVER_KEY", "short", "is shorter than 32 characters"),
        ("LORA_WORKER_GPU_SERVER_KEY", "sb_secret_" + "x" * 40, "make a key of its own"),
    ],
)
def test_wrong_setting_is_named(environment: pytest.MonkeyPatch, variable: str, value: str, said: str) -> None:
    right = {"LORA_WORKER_GPU_SERVER_URL": URL, "LORA_WORKER_GPU_SERVER_KEY": KEY, variable: value}
    for name, text in {"LORA_WORKER_LAUNCHER": "gpu-server", **right}.items():
        environment.setenv(name, text)
    with pytest.raises(SettingsError, match=f"{variable}: .*{said}"):
        load_settings()


def test_gpu_server_needs_nothing_of_runpod(environment: pytest.MonkeyPatch) -> None:
    for name in [name for name in SETTINGS if name.startswith("GPU_CLUSTER")]:
        environment.delenv(name)
    for name, text in {"LAUNCHER": "gpu-server", "GPU_SERVER_URL": f"{URL}/", "GPU_SERVER_KEY": KEY}.items():
        environment.setenv(f"LORA_WORKER_{name}", text)
    settings = load_settings()
    assert isinstance(settings, GpuServerSettings)
    assert settings.gpu_server_url == URL


async def test_gpus_that_a_job_would_not_get_are_not_billed(environment: pytest.MonkeyPatch) -> None:
    variables = {"LAUNCHER": "gpu-server", "GPU_SERVER_URL": URL, "GPU_SERVER_KEY": KEY, "ENDPOINT_GPU_COUNT": "2"}
    for name, text in variables.items():
        environment.setenv(f"LORA_WORKER_{name}", text)
    settings = load_settings()
    assert isinstance(settings, GpuServerSettings)
    async with httpx.AsyncClient() as http:
        with pytest.raises(SettingsError, match=r"is 2, and a GPU server gives each job one GPU: set it to 1\.$"):
            GpuServerLauncher.open(settings, http)
