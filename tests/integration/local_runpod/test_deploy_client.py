"""Each request of the deployment's client, and each answer of the local RunPod to it, fit RunPod's description."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from lora_worker.deployment.resources import EndpointChange, NewEndpoint, NewVolume, VolumeChange
from lora_worker.deployment.rest import RunPodApi
from sandbox.runpod import LocalRunPod
from tests.integration.local_runpod.caller import ENDPOINT, HANDLER, faults_of
from tests.processes.waiting import awaited
from tests.runpod_rest import faults_of_request, operation_of

GPU = {"pools": ["AMPERE_24", "ADA_24"], "excludedTypes": ["NVIDIA L4"], "count": 1, "allowedCudaVersions": []}
EVERYTHING = {
    **ENDPOINT,
    "gpu": {**GPU, "minCudaVersion": "12.4"},
    "disk": 30,
    "env": {"HF_HOME": "/runpod-volume/hf"},
    "registry": None,
    "workers": {"min": 1, "max": 1, "idleTimeout": 5},
    "dataCenterIds": ["EU-RO-1"],
    "timeout": 600_000,
    "flashboot": "OFF",
}


class Recorder:
    """Notes what is wrong with the requests and answers of a client, and which operations it has called."""

    def __init__(self) -> None:
        self.operations: set[str | None] = set()
        self.faults: list[str] = []

    async def request(self, request: httpx.Request) -> None:
        body = json.loads(request.content) if request.content else None
        self.operations.add(operation_of(request.method, request.url.path))
        self.faults += faults_of_request(request.method, str(request.url), body)

    async def response(self, answer: httpx.Response) -> None:
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            await answer.aread()
            self.faults += faults_of(answer)


@pytest.fixture(scope="module")
def runpod() -> Iterator[LocalRunPod]:
    with LocalRunPod.start(handler_module=HANDLER, workers_max=0) as runpod:
        yield runpod


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def api(runpod: LocalRunPod, recorder: Recorder) -> AsyncIterator[RunPodApi]:
    hooks = {"request": [recorder.request], "response": [recorder.response]}
    async with httpx.AsyncClient(event_hooks=hooks, trust_env=False, timeout=30) as http:
        yield RunPodApi(runpod.rest_url, runpod.api_key, http=http)


async def test_every_call_of_the_client_is_as_described(
    runpod: LocalRunPod, api: RunPodApi, recorder: Recorder
) -> None:
    called: list[Any] = []

    async def call(method: Any, *arguments: Any) -> Any:
        called.append(method.__name__)
        return await method(*arguments)

    volume = await call(api.create_volume, NewVolume(name="models", size=20, data_center="EU-RO-1", type="STANDARD"))
    await call(api.update_volume, volume.id, VolumeChange(size=30))
    wanted = {**EVERYTHING, "networkVolumes": [volume.id]}
    endpoint = await call(api.create_endpoint, NewEndpoint.model_validate(wanted))
    change = {name: value for name, value in wanted.items() if name not in {"name", "type", "registry"}}
    change |= {"image": "errands:2", "gpu": {**GPU, "minCudaVersion": ""}}
    await call(api.update_endpoint, endpoint.id, EndpointChange.model_validate(change))
    read = await call(api.read_endpoint, endpoint.id)
    assert (await call(api.read_release, endpoint.id)) is not None
    assert (read.image, read.gpu.min_cuda_version, read.timeout) == ("errands:2", None, 600_000)
    for lists in (api.list_endpoints, api.list_volumes, api.list_registries, api.list_gpu_types, api.list_data_centers):
        await call(lists)
    worker_id = awaited(lambda: next(iter(runpod.workers()), None), "the endpoint has a worker")
    await call(api.list_workers, endpoint.id)
    called.append("read_worker_logs")
    for since in (None, datetime(2026, 1, 1, tzinfo=UTC)):
        lines = api.read_worker_logs(endpoint.id, worker_id, since=since, idle_seconds=30, most_lines=1)
        assert [line.source async for line in lines] == ["system"]
    await call(api.delete_endpoint, endpoint.id)
    await call(api.delete_volume, volume.id)
    assert await api.read_endpoint(endpoint.id) is None
    assert recorder.faults == []
    public = {name for name, _ in inspect.getmembers(RunPodApi, inspect.isfunction) if not name.startswith("_")}
    assert set(called) == public
    assert None not in recorder.operations


@pytest.mark.parametrize(
    ("method", "url", "body", "fault"),
    [
        ("GET", "/v2/endpoints", None, "there is no operation"),
        ("GET", "/v2/serverless?page=1", None, "has no parameter page"),
        ("POST", "/v2/serverless", {**ENDPOINT, "executionTimeoutMs": 1}, "has no field executionTimeoutMs"),
        ("POST", "/v2/serverless", {**ENDPOINT, "timeout": "1"}, "timeout is not integer"),
        ("POST", "/v2/serverless", {**ENDPOINT, "scaling": {"type": "QUEUE_DELAY"}}, "scaling is none of"),
        ("POST", "/v2/network-volumes", {"name": "v", "size": 5, "dataCenter": "EU-RO-1"}, "size is not integer 10"),
        ("PATCH", "/v2/serverless/a", None, "needs body"),
        ("DELETE", "/v2/serverless/a", {}, "takes no body"),
    ],
)
def test_a_request_that_is_not_as_described_is_noticed(method: str, url: str, body: Any, fault: str) -> None:
    assert fault in " ".join(faults_of_request(method, f"http://127.0.0.1{url}", body))
