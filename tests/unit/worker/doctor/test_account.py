"""Each wrong set-up of the RunPod endpoint is named alone, with its remedy; a fitting one is left in peace."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import respx

from lora_worker.deployment.account import open_api
from lora_worker.deployment.resources import Endpoint, GpuType, NetworkVolume, Worker
from lora_worker.doctor.account import check_account
from lora_worker.doctor.check import Check
from lora_worker.launchers.runpod.settings import REST_URL, RunPodSettings
from tests.scripted import FakeQueue, make_services

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
API = "https://rest.example/v2"

ENDPOINT: dict[str, Any] = {
    "id": "ep1", "name": "lora-trainer", "type": "QUEUE", "image": "ghcr.io/x/trainer:0.1.0", "disk": 60,
    "env": {"HF_HOME": "/runpod-volume/hub", "HF_TOKEN": "{{ RUNPOD_SECRET_hf }}",
            "TOKENIZERS_PARALLELISM": "false"},
    "gpu": {"pools": ["ADA_80_PRO"], "excludedTypes": [], "count": 1},
    "workers": {"min": 0, "max": 3, "idleTimeout": 10}, "timeout": 43_200_000, "flashboot": "OFF",
    "networkVolumes": ["vol1"], "dataCenterIds": ["EU-1"],
}  # fmt: skip
VOLUMES: list[dict[str, Any]] = [{"id": "vol1", "name": "models", "size": 200, "dataCenter": "EU-1"}]
GPUS: list[dict[str, Any]] = [
    {"id": "NVIDIA H100 80GB HBM3", "name": "H100 SXM", "pool": "ADA_80_PRO", "memory": 80,
     "price": {"serverless": 4.18}, "availability": "LOW"},
    {"id": "NVIDIA L4", "name": "L4", "pool": "AMPERE_24", "memory": 24, "price": {"serverless": 9.0},
     "availability": "NONE"},
]  # fmt: skip
WORKERS: list[dict[str, Any]] = [
    {"id": "w1", "status": "INITIALIZING", "gpuCount": 1, "isStale": False, "startedAt": "2026-11-26T11:50:00Z"},
    {"id": "w2", "status": "THROTTLED", "gpuCount": 1, "isStale": False, "startedAt": None},
]


def settings(**changes: Any) -> RunPodSettings:
    return RunPodSettings(
        **{
            "supabase_url": "https://p.supabase.co",
            "supabase_service_role_key": "sb_secret_x",
            "supabase_publishable_key": "sb_publishable_x",
            "gpu_cluster_api_url": "https://api.runpod.ai/v2/ep1",
            "gpu_cluster_api_key": "rpa_x",
            "runpod_api_url": API,
            "endpoint_gpu_type": "H100",
            **changes,
        }
    )


class _Queue(FakeQueue):
    def __init__(self, base_models: list[str]) -> None:
        super().__init__()
        self._base_models = base_models

    async def project_report(self) -> dict[str, Any]:
        return {"base_models": self._base_models}


async def checks(
    endpoint: dict[str, Any] | None = ENDPOINT,
    *,
    volumes: list[dict[str, Any]] = VOLUMES,
    gpus: list[dict[str, Any]] = GPUS,
    workers: list[dict[str, Any]] = WORKERS,
    base_models: list[str] | None = None,
    status: int = 200,
    **changes: Any,
) -> list[Check]:
    async with httpx.AsyncClient() as http:
        queue = _Queue(base_models or ["", "mistralai/Mistral-7B-Instruct-v0.2"])
        services = make_services(queue=queue, settings=settings(**changes), http=http, now=lambda: NOW)
        with respx.mock(base_url=API, assert_all_called=False) as api:
            found = httpx.Response(404, json={"title": "Not Found", "status": 404, "detail": "no"})
            if endpoint is not None:
                found = httpx.Response(200, json=endpoint)
            api.get("/serverless/ep1").mock(found if status == 200 else httpx.Response(status, json={"status": status}))
            api.get("/serverless/ep1/workers").respond(json={"workers": workers})
            api.get("/network-volumes").respond(json={"networkVolumes": volumes})
            api.get("/catalog/gpus").respond(json={"gpus": gpus})
            return await check_account(services)


def test_examples_are_as_runpod_answers() -> None:
    for kind, examples in ((Endpoint, [ENDPOINT]), (NetworkVolume, VOLUMES), (GpuType, GPUS), (Worker, WORKERS)):
        for example in examples:
            read = kind.model_validate(example).model_dump(by_alias=True, exclude_none=True)  # type: ignore[attr-defined]
            assert {key: value for key, value in read.items() if key in {"id", "name", "status", "timeout"}}
            assert all(read[key] == example[key] for key in ("id", "name", "status", "timeout") if key in example)


async def test_endpoint_that_fits_the_settings_passes() -> None:
    assert await checks() == [Check("account", True, "the endpoint's settings fit the worker's")]


def changed(**changes: Any) -> dict[str, Any]:
    return {"endpoint": {**ENDPOINT, **changes}}


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "short execution time-out": (changed(timeout=300_000), "its execution time-out is 300 s"),
    "no worker allowed": (changed(workers={"min": 0, "max": 0, "idleTimeout": 10}), "may have no worker"),
    "worker always on": (changed(workers={"min": 1, "max": 3, "idleTimeout": 10}), "1 worker always on"),
    "long idle time-out": (changed(workers={"min": 0, "max": 3, "idleTimeout": 600}), "wait 600 s"),
    "FlashBoot": (changed(flashboot="FLASHBOOT"), "FlashBoot is on"),
    "image called latest": (changed(image="ghcr.io/x/trainer:latest"), "has no fixed tag"),
    "image without a tag": (changed(image="trainer"), "has no fixed tag"),
    "image of a registry with a port": (changed(image="registry:5000/trainer"), "has no fixed tag"),
    "key in the environment": (changed(env={"HF_TOKEN": "hf_secret"}), "its environment holds HF_TOKEN"),
    "no volume": (changed(networkVolumes=[]), "it has no network volume"),
    "volume gone": ({"volumes": []}, "its network volume vol1 does not exist"),
    "volume elsewhere": ({"volumes": [{**VOLUMES[0], "dataCenter": "US-1"}]}, "its network volume is in US-1"),
    "two GPUs a worker": (changed(gpu={**ENDPOINT["gpu"], "count": 2}), "its workers have 2 GPUs"),
    "another GPU": ({"endpoint_gpu_type": "A100-80GB"}, "LORA_WORKER_ENDPOINT_GPU_TYPE is A100-80GB"),
    "GPU not set": ({"endpoint_gpu_type": None}, "billed as the GPU that they ask for"),
    "dearer than the price table": (
        {"gpus": [{**GPUS[0], "price": {"serverless": 5.0}}]}, "RunPod asks $5.00 an hour for NVIDIA H100"),
    "none in stock": ({"gpus": [{**GPUS[0], "availability": "NONE"}]}, "none of its GPUs now (H100)"),
    "worker that never gets ready": (
        {"workers": [{**WORKERS[0], "startedAt": "2026-11-26T10:00:00Z"}]}, "w1 has been initializing for 120 minutes"),
    "unhealthy worker": ({"workers": [{**WORKERS[0], "status": "UNHEALTHY"}]}, "the worker w1 is unhealthy"),
    "key without rights": ({"status": 403}, "may send jobs but not look at the endpoint"),
    "endpoint of another account": ({"endpoint": None}, "has no endpoint ep1"),
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
async def test_each_wrong_setup_is_named_alone_with_its_remedy(broken: str) -> None:
    changes, words = BROKEN[broken]
    (check,) = await checks(**changes)
    assert check.ok is not True
    assert words in check.finding
    assert check.remedy
    assert "hf_secret" not in check.finding + check.remedy


async def test_base_model_too_large_for_the_card_is_named() -> None:
    gpus = [{**GPUS[1], "price": {"serverless": 0.68}, "availability": "HIGH"}]
    (check,) = await checks(
        {**ENDPOINT, "gpu": {"pools": ["AMPERE_24"], "count": 1}},
        gpus=gpus,
        endpoint_gpu_type="L4",
        base_models=["", "Qwen/Qwen3-Next-80B-A3B-Instruct"],
    )
    assert "Qwen/Qwen3-Next-80B-A3B-Instruct needs about 54 GB" in check.finding


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        ({"runpod_api_url": REST_URL}, True),
        ({"runpod_api_url": REST_URL, "gpu_cluster_api_url": "http://10.0.0.1/v2/ep1"}, False),
        ({"gpu_cluster_api_url": "http://127.0.0.1:9/v2/ep1"}, True),
    ],
)
async def test_account_is_asked_only_about_an_endpoint_of_its_own(changes: dict[str, Any], reads: bool) -> None:
    async with httpx.AsyncClient() as http:
        assert (open_api(settings(**changes), http) is not None) is reads
