"""What keeps an endpoint from answering with finished adapters is named alone; a fitting endpoint passes."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import respx

from lora_worker.deployment.fleet import FinishedAdapters
from lora_worker.deployment.resources import Endpoint
from lora_worker.deployment.serving_plan import RESOLVER_VARIABLES
from lora_worker.doctor.check import Check
from lora_worker.doctor.inference import Answering, check_inference, examine_answering
from lora_worker.launchers.runpod.settings import REST_URL
from tests.scripted import FakeQueue, make_services
from tests.unit.worker.doctor.test_account import API, ENDPOINT, settings

BASE = settings().default_base_model
GOOD: dict[str, Any] = {
    "id": "inf1", "name": "lora-trainer-inference", "type": "QUEUE", "image": "runpod/worker-v1-vllm:v2.25.2",
    "env": {"MODEL_NAME": BASE, "ENABLE_LORA": "true", "MAX_LORA_RANK": "32", **RESOLVER_VARIABLES},
    "workers": {"min": 0, "max": 3, "idleTimeout": 60}, "networkVolumes": ["vol1"],
}  # fmt: skip
FLEET = [FinishedAdapters(base_model=BASE, rank=32, adapters=3)]


def examined(fleet: list[FinishedAdapters] = FLEET, **changes: Any) -> list[Check]:
    endpoint = Endpoint.model_validate({**GOOD, **changes})
    return examine_answering(Answering(endpoint, Endpoint.model_validate(ENDPOINT), BASE, fleet))


def with_variables(**changes: str | None) -> dict[str, Any]:
    merged = {**GOOD["env"], **changes}
    return {"env": {name: value for name, value in merged.items() if value is not None}}


def test_an_endpoint_that_fits_passes() -> None:
    passes = [Check("inference", True, f"answers with {BASE} and its finished adapters")]
    assert examined() == passes
    assert examined(**with_variables(VLLM_PLUGINS="other, lora_filesystem_resolver",
                                     VLLM_LORA_RESOLVER_CACHE_DIR="/runpod-volume/lora-adapters/",
                                     VLLM_ALLOW_RUNTIME_LORA_UPDATING="1")) == passes  # fmt: skip
    assert examined(**with_variables(VLLM_PLUGINS=None)) == passes
    merged = with_variables(MODEL_NAME="/runpod-volume/exports/bot", ENABLE_LORA=None)
    assert examined(**merged)[0].finding == "answers with /runpod-volume/exports/bot, without adapters"


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "another volume": ({"networkVolumes": ["vol2"]}, "none of the trainer's endpoint"),
    "no folder": (with_variables(VLLM_LORA_RESOLVER_CACHE_DIR=None), "VLLM_LORA_RESOLVER_CACHE_DIR are not as"),
    "another folder": (with_variables(VLLM_LORA_RESOLVER_CACHE_DIR="/tmp"), "VLLM_LORA_RESOLVER_CACHE_DIR are not as"),
    "no plugin": (with_variables(VLLM_PLUGINS=""), "vLLM finds no adapter by its name: VLLM_PLUGINS"),
    "no updates": (with_variables(VLLM_ALLOW_RUNTIME_LORA_UPDATING="no"), "VLLM_ALLOW_RUNTIME_LORA_UPDATING are not"),
    "another base": (with_variables(MODEL_NAME="org/other"), "it answers with org/other, and jobs that name no base"),
    "no base": (with_variables(MODEL_NAME=None), "MODEL_NAME names no base model"),
    "no adapters": (with_variables(ENABLE_LORA="false"), "ENABLE_LORA is not true"),
    "offline": (with_variables(HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE makes vLLM serve the base under its path"),
    "a lower rank": (with_variables(MAX_LORA_RANK="16"), "3 finished adapters can't be called: vLLM takes ranks up"),
    "no rank": (with_variables(MAX_LORA_RANK=None), "ranks up to 16 (MAX_LORA_RANK), and theirs are up to 32"),
    "no worker": ({"workers": {"min": 0, "max": 0}}, "it may have no worker (max 0)"),
    "latest": ({"image": "runpod/worker-v1-vllm"}, "has no fixed tag"),
    "a key": (with_variables(HF_TOKEN="hf_secret"), "its environment holds HF_TOKEN"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_each_fault_is_named_alone_with_its_remedy(case: str) -> None:
    changes, finding = BROKEN[case]
    (check,) = examined(**changes)
    assert (check.subject, check.ok) == ("inference", False)
    assert finding in check.finding
    assert check.remedy
    assert "hf_secret" not in check.finding + check.remedy


def test_an_endpoint_without_a_volume_is_told_and_no_fault() -> None:
    (check,) = examined(networkVolumes=[], env={**GOOD["env"]})
    assert (check.ok, check.finding[:27]) == (None, "it has no network volume: o")


class _Queue(FakeQueue):
    async def finished_adapters(self) -> list[FinishedAdapters]:
        return FLEET


async def asked(answer: httpx.Response, **changes: Any) -> list[Check]:
    async with httpx.AsyncClient() as http:
        services = make_services(queue=_Queue(), settings=settings(**changes), http=http)
        with respx.mock(base_url=API, assert_all_called=False) as api:
            api.get("/serverless/ep1").respond(json=ENDPOINT)
            api.get("/serverless/inf1").mock(answer)
            return await check_inference(services)


async def test_it_is_looked_at_only_where_the_settings_name_it() -> None:
    good = httpx.Response(200, json=GOOD)
    assert await asked(good) == []
    assert [check.ok for check in await asked(good, runpod_inference_endpoint_id="inf1")] == [True]
    assert await asked(httpx.Response(403, json={}), runpod_inference_endpoint_id="inf1") == []
    elsewhere = {"gpu_cluster_api_url": "https://proxy.example/v2/ep1", "runpod_api_url": REST_URL}
    (unasked,) = await asked(good, runpod_inference_endpoint_id="inf1", **elsewhere)
    assert (unasked.ok, "inf1 can't be asked" in unasked.finding) == (None, True)
    assert "LORA_WORKER_RUNPOD_API_URL" in unasked.remedy
    (gone,) = await asked(httpx.Response(404, json={}), runpod_inference_endpoint_id="inf1")
    assert (gone.ok, "has no endpoint inf1" in gone.finding) == (False, True)
