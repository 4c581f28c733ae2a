"""RunPod's REST API v2: what is repeated, what never is, and each refusal as one sentence."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from lora_worker.deployment.resources import EndpointChange, NewVolume, VolumeChange
from lora_worker.deployment.rest import RunPodApi
from lora_worker.errors import CreationInDoubtError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.observability.calls import MeasuredClient
from tests.unit.worker.deployment.fake_api import KEY, Script, Waits, client

VOLUME = {"id": "vol1", "name": "models", "size": 50, "dataCenter": "EU-RO-1", "type": "STANDARD"}
NEW_VOLUME = NewVolume(name="models", size=50, data_center="EU-RO-1")
LOST = (httpx.ReadTimeout("lost"), httpx.RemoteProtocolError("lost"), httpx.Response(500), httpx.Response(502))


def volumes(*items: Any) -> httpx.Response:
    return httpx.Response(200, json={"networkVolumes": list(items)})


def problem(status: int, detail: str, **more: Any) -> httpx.Response:
    return httpx.Response(status, json={"title": "T", "status": status, "detail": detail, **more})


@pytest.mark.parametrize("fault", [*LOST, httpx.ConnectError("refused"), httpx.Response(408)], ids=str)
async def test_a_read_is_repeated_after_a_fault_that_may_pass(fault: Any) -> None:
    script, waits = Script(fault, fault, volumes(VOLUME)), Waits()
    async with client(script, waits) as api:
        (found,) = await api.list_volumes()
    assert (found.id, found.data_center) == ("vol1", "EU-RO-1")
    assert len(waits.seconds) == len(waits.said) == 2
    assert waits.seconds[0] < waits.seconds[1] * 2
    assert script.requests[0].headers["authorization"] == f"Bearer {KEY}"


async def test_retries_end_with_one_sentence_about_the_fault() -> None:
    script = Script(*[httpx.Response(503)] * 10)
    async with client(script, Waits()) as api:
        with pytest.raises(ServiceUnavailableError, match=r"^RunPod failed \(503\) while it should list network"):
            await api.list_volumes()
    assert len(script.requests) == 5


@pytest.mark.parametrize("fault", LOST, ids=str)
async def test_a_creation_whose_answer_was_lost_is_not_repeated(fault: Any) -> None:
    script, waits = Script(fault, httpx.Response(201, json=VOLUME)), Waits()
    async with client(script, waits) as api:
        with pytest.raises(CreationInDoubtError):
            await api.create_volume(NEW_VOLUME)
    assert script.calls == ["POST /v2/network-volumes"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null"], ids=str)
async def test_a_creation_with_an_unreadable_answer_is_in_doubt(body: bytes) -> None:
    async with client(Script(httpx.Response(201, content=body)), Waits()) as api:
        with pytest.raises(CreationInDoubtError):
            await api.create_volume(NEW_VOLUME)


@pytest.mark.parametrize("fault", [httpx.ConnectError("refused"), httpx.ConnectTimeout("t"), httpx.Response(429)])
async def test_a_creation_that_was_not_taken_is_repeated(fault: Any) -> None:
    script = Script(fault, httpx.Response(201, json=VOLUME))
    async with client(script, Waits()) as api:
        assert (await api.create_volume(NEW_VOLUME)).id == "vol1"
    assert len(script.requests) == 2


@pytest.mark.parametrize("fault", LOST, ids=str)
async def test_a_change_and_a_deletion_are_repeated(fault: Any) -> None:
    script = Script(fault, httpx.Response(200, json=VOLUME), fault, httpx.Response(204))
    async with client(script, Waits()) as api:
        await api.update_volume("vol1", VolumeChange(size=60))
        await api.delete_volume("vol1")
    assert script.calls == ["PATCH /v2/network-volumes/vol1"] * 2 + ["DELETE /v2/network-volumes/vol1"] * 2


async def test_calls_are_measured_by_what_they_ask_for() -> None:
    labels = {"service": "account", "operation": "network-volumes"}

    def measured() -> float:
        return REGISTRY.get_sample_value("lora_worker_api_call_seconds_count", labels) or 0.0

    before = measured()
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=VOLUME))
    async with MeasuredClient(transport=transport) as http:
        await RunPodApi("https://x/v2", "key", http=http).update_volume("vol1", VolumeChange(size=60))
    assert measured() == before + 1


async def test_deleting_what_is_gone_already_is_no_error() -> None:
    script = Script(problem(404, "not found"), httpx.Response(204))
    async with client(script, Waits()) as api:
        await api.delete_endpoint("ep1")
        await api.delete_volume("vol1")
    assert script.calls == ["DELETE /v2/serverless/ep1", "DELETE /v2/network-volumes/vol1"]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "12"}, 12),
        ({"RateLimit": '"minute";r=0;t=9, "hour";r=2800;t=1812'}, 9),
        ({"RateLimit": '"minute";r=0;t=9, "hour";r=0;t=31'}, 31),
        ({"RateLimit": "nonsense"}, 5),
        ({"Retry-After": "soon"}, 5),
        ({}, 5),
    ],
)
async def test_a_429_is_waited_for_as_long_as_runpod_says(headers: dict[str, str], seconds: float) -> None:
    script, waits = Script(httpx.Response(429, headers=headers), volumes()), Waits()
    async with client(script, waits) as api:
        assert await api.list_volumes() == []
    assert waits.seconds == [seconds]
    assert "takes no more requests" in waits.said[0]


async def test_a_pause_of_half_an_hour_ends_the_command_at_once() -> None:
    script = Script(httpx.Response(429, headers={"Retry-After": "1812"}))
    async with client(script, Waits()) as api:
        with pytest.raises(ServiceUnavailableError, match="for 1812 s"):
            await api.list_volumes()


async def test_a_wrong_key_and_one_without_rights_are_told_apart() -> None:
    script = Script(problem(401, "missing bearer token"), problem(403, "access denied"))
    async with client(script, Waits()) as api:
        with pytest.raises(ServiceRefusedError, match=r"refused the API key.*GPU_CLUSTER_API_KEY"):
            await api.list_volumes()
        with pytest.raises(
            ServiceRefusedError, match=r"no right to make the network volume \(403\): give it"
        ) as caught:
            await api.create_volume(NEW_VOLUME)
    assert caught.value.status == 403


@pytest.mark.parametrize(
    "errors",
    [
        ["$.gpu.pools: 'X' is not a pool"],
        [{"location": "$.gpu.pools", "message": "'X' is not a pool"}],
    ],
)
async def test_a_refusal_names_the_field(errors: list[Any]) -> None:
    refused = problem(422, "Request validation failed.", errors=errors)
    async with client(Script(refused), Waits()) as api:
        with pytest.raises(ServiceRefusedError) as caught:
            await api.update_endpoint("ep1", EndpointChange(timeout=5))
    expected = "RunPod refused to change the endpoint (422): Request validation failed.; $.gpu.pools: 'X' is not a pool"
    assert str(caught.value) == expected


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"null", b'{"detail": 5, "errors": {"a": 1}}', b"[" * 100_000])
async def test_a_refusal_that_explains_nothing_still_gives_a_sentence(body: bytes) -> None:
    async with client(Script(httpx.Response(400, content=body)), Waits()) as api:
        with pytest.raises(ServiceRefusedError, match=r"^RunPod refused to make the network volume \(400\)"):
            await api.create_volume(NEW_VOLUME)


async def test_a_refusal_shows_no_key_and_stays_on_one_short_line() -> None:
    refused = problem(400, f"you sent {KEY}\n\x1b[31m" + "x" * 100_000, errors=["y" * 10_000] * 500)
    async with client(Script(refused), Waits()) as api:
        with pytest.raises(ServiceRefusedError) as caught:
            await api.create_volume(NEW_VOLUME)
    text = str(caught.value)
    assert KEY not in text
    assert "you sent [secret]" in text
    assert len(text) < 400
    assert text.isprintable()


@pytest.mark.parametrize(
    "strange",
    [
        {"id": "../../pods", "name": "models"},
        {"id": "v", "name": ["models"]},
        {"id": 5, "name": "models", "size": "large", "dataCenter": None},
        {"name": "x" * 100_000, "size": 10**40},
        {},
    ],
)
async def test_a_strange_resource_of_others_hides_no_other_one(strange: Any) -> None:
    async with client(Script(volumes(strange, "text", None, VOLUME)), Waits()) as api:
        found = await api.list_volumes()
    assert found[-1].id == "vol1"
    assert found[0].id in {None, "v"}


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"networkVolumes": {}}', b'{"networkVolumes": ' + b"[" * 9999])
async def test_a_list_that_is_none_is_not_taken_for_an_empty_one(body: bytes) -> None:
    async with client(Script(httpx.Response(200, content=body)), Waits()) as api:
        with pytest.raises(ServiceUnavailableError, match="not readable"):
            await api.list_volumes()


def test_requests_refuse_fields_and_types_that_runpod_does_not_know() -> None:
    for wrong in ({"sizes": 5}, {"size": "50"}, {"size": 5}, {"size": 5000}, {"type": "FAST"}):
        with pytest.raises(ValueError, match="validation error"):
            NewVolume.model_validate({"name": "n", "size": 50, "data_center": "d", **wrong})


def test_a_change_sends_only_what_is_set() -> None:
    assert EndpointChange(timeout=5).body() == {"timeout": 5}


async def test_log_lines_of_a_worker_are_read_and_bounded() -> None:
    stream = (
        'id: 1\ndata: {"ts":"2026-06-01T12:05:04Z","source":"container","line":"Worker ready."}\n\n'
        ": a comment\n\ndata: no json\n\ndata: 5\n\ndata: " + "x" * 500_000 + "\n\n"
        'id: 2\r\ndata: {"line":"second","source":7}\r\n\r\n'
        'data: {"line":"third"}\n\n'
    )
    script = Script(httpx.Response(200, text=stream), httpx.Response(200, text=stream), problem(404, "no worker"))
    async with client(script, Waits()) as api:
        lines = [line async for line in api.read_worker_logs("ep1", "w1", tail=99_999)]
        few = [line.line async for line in api.read_worker_logs("ep1", "w1", most_lines=1)]
        with pytest.raises(ServiceRefusedError, match="read a worker's log"):
            [line async for line in api.read_worker_logs("ep1", "w1")]
    assert [(line.line, line.source) for line in lines] == [
        ("Worker ready.", "container"), ("second", None), ("third", None),
    ]  # fmt: skip
    assert few == ["Worker ready."]
    assert script.requests[0].url.path == "/v2/serverless/ep1/workers/w1/logs"
    assert script.requests[0].url.params["tail"] == "5000"
