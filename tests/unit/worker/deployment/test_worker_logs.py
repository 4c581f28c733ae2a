"""The logs of RunPod's workers: which are read, what a log that is gone means, and where the key goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from lora_worker.deployment.worker_logs import WorkerLogs, open_container_logs
from lora_worker.errors import ServiceRefusedError
from lora_worker.launchers.base import LaunchRef
from lora_worker.launchers.runpod.settings import RunPodSettings
from tests.scripted import make_services
from tests.unit.worker.deployment.fake_api import Waits, client

ENDPOINT = "https://api.runpod.ai/v2/ep1"
LAUNCH = LaunchRef(ENDPOINT, "job1")
WORKERS = [
    {"id": "ready", "status": "IDLE"}, {"id": "busy", "status": "RUNNING"}, {"id": "new", "status": "INITIALIZING"},
    {"id": "sick", "status": "UNHEALTHY"}, {"id": "../../pods", "status": "UNHEALTHY"},
]  # fmt: skip


def event(line: str, source: str = "container", ts: str = "2026-11-26T14:00:00Z") -> str:
    return f"id: {ts}/1\ndata: {json.dumps({'ts': ts, 'source': source, 'line': line})}\n\n"


def answering(paths: list[str], logs: dict[str, httpx.Response]) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        if request.url.path.endswith("/workers"):
            return httpx.Response(200, json={"workers": WORKERS})
        return logs.get(request.url.path.split("/")[-2], httpx.Response(404, json={"status": 404}))

    return answer


async def test_log_of_the_launchs_worker_is_read_with_times_and_sources() -> None:
    paths: list[str] = []
    logs = {"w1": httpx.Response(200, text=event("one") + event("pulled", "system", "no time") + "data: {\n\n")}
    async with client(answering(paths, logs), Waits()) as api:
        first, second = await WorkerLogs(api, "x").read(LAUNCH, "w1", most_lines=200)
    assert paths == ["/v2/serverless/ep1/workers/w1/logs"]
    assert (first.text, first.is_launchers, first.at) == ("one", False, datetime(2026, 11, 26, 14, tzinfo=UTC))
    assert (second.text, second.is_launchers, second.at) == ("pulled", True, None)


async def test_before_a_worker_has_the_job_only_those_are_read_that_start() -> None:
    paths: list[str] = []
    logs = {"new": httpx.Response(200, text=event("starts")), "sick": httpx.Response(200, text=event("fails"))}
    async with client(answering(paths, logs), Waits()) as api:
        lines = await WorkerLogs(api, ENDPOINT).read(LaunchRef(None, "job1"), None, most_lines=200)
    assert [(line.container, line.text) for line in lines] == [("new", "starts"), ("sick", "fails")]
    assert sorted(paths)[1:] == ["/v2/serverless/ep1/workers/new/logs", "/v2/serverless/ep1/workers/sick/logs"]


async def test_log_that_runpod_has_no_more_is_empty_and_a_refusal_is_told() -> None:
    async with client(answering([], {"w2": httpx.Response(403, json={})}), Waits()) as api:
        logs = WorkerLogs(api, ENDPOINT)
        assert await logs.read(LAUNCH, "w1", most_lines=200) == []
        assert [line async for line in logs.follow(LAUNCH, "w1", since=None)] == []
        with pytest.raises(ServiceRefusedError, match="403"):
            await logs.read(LAUNCH, "w2", most_lines=200)


@pytest.mark.parametrize("endpoint", ["https://api.runpod.ai/v2/..", "https://api.runpod.ai/v2/a?b", "x/"])
async def test_row_that_names_no_endpoint_asks_for_nothing(endpoint: str) -> None:
    paths: list[str] = []
    async with client(answering(paths, {}), Waits()) as api:
        assert await WorkerLogs(api, ENDPOINT).read(LaunchRef(endpoint, "job1"), "w1", most_lines=200) == []
    assert paths == []


@pytest.mark.parametrize(
    ("url", "api", "opened"),
    [
        (ENDPOINT, {}, True),
        ("http://127.0.0.1:8000/v2/ep1", {}, False),
        ("http://127.0.0.1:8000/v2/ep1", {"runpod_api_url": "http://127.0.0.1:8000/rest/v2"}, True),
    ],
)
async def test_key_of_another_job_api_is_not_sent_to_runpod(url: str, api: dict[str, Any], opened: bool) -> None:
    settings = RunPodSettings(
        supabase_url="http://127.0.0.1:9",
        supabase_service_role_key="sb_secret_x",
        supabase_publishable_key="sb_publishable_x",
        gpu_cluster_api_url=url,
        gpu_cluster_api_key="rpa_x",
        _env_file=None,
        **api,
    )
    async with httpx.AsyncClient() as http:
        assert bool(open_container_logs(settings, http)) == opened
        assert not open_container_logs(make_services().settings, http)
