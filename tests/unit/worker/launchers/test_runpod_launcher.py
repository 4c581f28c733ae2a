"""Every answer of RunPod, and the launcher's reading of it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from lora_worker.errors import LaunchInDoubtError, LaunchRefusedError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.launchers.base import LaunchRef, LaunchState, Policy
from lora_worker.launchers.runpod.launcher import RunPodLauncher

POLICY = Policy(execution_seconds=3600, ttl_seconds=90000)
HEALTH = {"jobs": {"inQueue": 0}, "workers": {"idle": 1, "running": 0}}


async def test_launch_sends_policy_in_milliseconds_and_the_key(launcher: RunPodLauncher, api: Any) -> None:
    route = api.post("/run").respond(json={"id": "job-u1", "status": "IN_QUEUE"})
    assert await launcher.launch({"run_id": "r"}, POLICY) == "job-u1"
    sent = route.calls.last.request
    assert json.loads(sent.content) == {
        "input": {"run_id": "r"},
        "policy": {"executionTimeout": 3_600_000, "ttl": 90_000_000},
    }
    assert sent.headers["authorization"] == "Bearer key"
    assert sent.headers["content-type"] == "application/json"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
async def test_refused_launch_is_known_not_to_run(launcher: RunPodLauncher, api: Any, status: int) -> None:
    api.post("/run").respond(status)
    with pytest.raises(ServiceRefusedError, match=str(status)) as caught:
        await launcher.launch({}, POLICY)
    assert caught.value.status == status
    # Only these statuses blame the request; the others blame the key or the endpoint, and fail no job.
    assert isinstance(caught.value, LaunchRefusedError) is (status in {400, 413, 422})


@pytest.mark.parametrize(
    ("headers", "seconds"), [({}, None), ({"retry-after": "7"}, 7.0), ({"retry-after": "soon"}, None)]
)
async def test_429_postpones_the_launch_as_long_as_runpod_asks(
    launcher: RunPodLauncher, api: Any, headers: dict[str, str], seconds: float | None
) -> None:
    api.post("/run").respond(429, headers=headers)
    with pytest.raises(ServiceUnavailableError) as caught:
        await launcher.launch({}, POLICY)
    assert caught.value.retry_after_seconds == seconds


@pytest.mark.parametrize("error", [httpx.ConnectError("no"), httpx.ConnectTimeout("no")])
async def test_failed_connection_is_known_not_to_launch(
    launcher: RunPodLauncher, api: Any, error: httpx.HTTPError
) -> None:
    api.post("/run").mock(side_effect=error)
    with pytest.raises(ServiceUnavailableError):
        await launcher.launch({}, POLICY)


@pytest.mark.parametrize(
    "answer",
    [
        {"side_effect": httpx.ReadTimeout("late")},
        {"side_effect": httpx.RemoteProtocolError("cut")},
        {"return_value": httpx.Response(500)},
        {"return_value": httpx.Response(502, html="<html>")},
        {"return_value": httpx.Response(200, text='{"id": "')},
        {"return_value": httpx.Response(200, html="<html>")},
        {"return_value": httpx.Response(200, json={"status": "IN_QUEUE"})},
        {"return_value": httpx.Response(200, json=[])},
        {"return_value": httpx.Response(200, json={"id": 5})},
        {"return_value": httpx.Response(200, json={"id": "x/../../purge-queue"})},
        {"return_value": httpx.Response(200, json={"id": ""})},
        {"return_value": httpx.Response(200, json={"id": "x" * 256})},
    ],
)
async def test_launch_that_may_have_been_accepted_is_unconfirmed(
    launcher: RunPodLauncher, api: Any, answer: dict[str, Any]
) -> None:
    api.post("/run").mock(**answer)
    with pytest.raises(LaunchInDoubtError):
        await launcher.launch({}, POLICY)


async def test_a_payload_over_runpods_limit_is_not_sent(launcher: RunPodLauncher, api: Any) -> None:
    with pytest.raises(ServiceRefusedError, match="10 MB"):
        await launcher.launch({"x": "y" * 10_000_001}, POLICY)
    assert not api.calls


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("IN_QUEUE", "queued"), ("IN_PROGRESS", "running"), ("RUNNING", "running"), ("COMPLETED", "completed"),
        ("FAILED", "failed"), ("CANCELLED", "cancelled"), ("TIMED_OUT", "timed_out"), ("PAUSED", "unknown"),
    ],
)  # fmt: skip
@pytest.mark.fault(5)
async def test_every_status_has_a_state(launcher: RunPodLauncher, api: Any, word: str, state: str) -> None:
    api.get("/status/j").respond(
        json={"id": "j", "status": word, "executionTime": 1500, "delayTime": 200, "output": {"a": 1}}
    )
    seen = await launcher.observe(LaunchRef(None, "j"))
    assert seen.state is LaunchState(state)
    if state != "unknown":
        assert (seen.execution_seconds, seen.queue_seconds, seen.output) == (1.5, 0.2, {"a": 1})


@pytest.mark.parametrize(
    "answer",
    [
        {"side_effect": httpx.ReadTimeout("late")},
        {"side_effect": httpx.ConnectError("no")},
        {"return_value": httpx.Response(429)},
        {"return_value": httpx.Response(401)},
        {"return_value": httpx.Response(503, html="<html>")},
        {"return_value": httpx.Response(200, text="{")},
        {"return_value": httpx.Response(200, json=[])},
        {"return_value": httpx.Response(200, json={"id": "j"})},
    ],
)
async def test_unreadable_status_is_unknown(launcher: RunPodLauncher, api: Any, answer: dict[str, Any]) -> None:
    api.get("/status/j").mock(**answer)
    assert (await launcher.observe(LaunchRef(None, "j"))).state is LaunchState.UNKNOWN


@pytest.mark.parametrize(
    ("health", "state"), [(httpx.Response(200, json=HEALTH), "missing"), (httpx.Response(404), "unknown")]
)
async def test_404_means_missing_only_where_the_endpoint_answers(
    launcher: RunPodLauncher, api: Any, health: httpx.Response, state: str
) -> None:
    api.get("/status/j").respond(404)
    api.get("/health").mock(return_value=health)
    assert (await launcher.observe(LaunchRef(None, "j"))).state is LaunchState(state)


@pytest.mark.parametrize(("status", "asked"), [(200, True), (404, True), (400, False)])
async def test_cancel_reports_whether_it_was_accepted(
    launcher: RunPodLauncher, api: Any, status: int, asked: bool
) -> None:
    api.post("/cancel/j").respond(status)
    assert await launcher.cancel(LaunchRef(None, "j")) is asked


@pytest.mark.parametrize("named", ["x/../../purge-queue", "..", "", "a b", "x?y=1", "x#y", "x\n", "x" * 256])
async def test_job_id_that_is_an_api_route_is_never_called(launcher: RunPodLauncher, api: Any, named: str) -> None:
    assert (await launcher.observe(LaunchRef(None, named))).state is LaunchState.MISSING
    assert await launcher.cancel(LaunchRef(None, named)) is True
    assert not api.calls


@pytest.mark.parametrize(
    ("workers", "queued", "words"),
    [
        ({"idle": 1}, 3, None),
        ({"throttled": 2}, 1, "no free GPU"),
        ({}, 1, "workersMax"),
        ({}, 0, None),
    ],
)
async def test_endpoint_health_gives_the_reason_for_no_worker(
    launcher: RunPodLauncher, api: Any, workers: dict[str, int], queued: int, words: str | None
) -> None:
    api.get("/health").respond(json={"jobs": {"inQueue": queued}, "workers": workers})
    health = await launcher.health()
    assert health.reachable
    assert (health.problem is None) if words is None else words in (health.problem or "")
