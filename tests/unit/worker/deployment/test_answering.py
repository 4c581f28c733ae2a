"""Why no endpoint answers with adapters: each cause has its own sentence, with a remedy that helps."""

from __future__ import annotations

import httpx
import pytest

from lora_worker.configuration.settings import Settings
from lora_worker.deployment.answering import open_answering, why_none
from lora_worker.errors import SettingsError
from lora_worker.inference.address import inference_access
from lora_worker.launchers.runpod.settings import REST_URL
from tests.scripted import make_services
from tests.unit.worker.doctor.test_account import settings

OF_ANOTHER = {"gpu_cluster_api_url": "https://proxy.example/v2/ep1", "runpod_api_url": REST_URL}


@pytest.mark.parametrize(
    ("found", "cause", "remedy"),
    [
        (make_services().settings, "LORA_WORKER_LAUNCHER names another", "`lora-worker export`"),
        (settings(), "no endpoint is set", "`lora-worker deploy inference apply` makes one"),
        (
            settings(runpod_inference_endpoint_id="inf1", **OF_ANOTHER),
            "the account of the endpoint inf1 can't be asked",
            "set LORA_WORKER_RUNPOD_API_URL",
        ),
    ],
    ids=["another launcher", "no id", "another account"],
)
async def test_each_cause_has_its_own_remedy(found: Settings, cause: str, remedy: str) -> None:
    async with httpx.AsyncClient() as http:
        assert open_answering(found, http) is None
    what, _, then = why_none(found).partition(": ")
    assert cause in what
    assert then.startswith(remedy)


def test_questions_are_refused_by_the_same_words_and_need_no_account() -> None:
    for without in (make_services().settings, settings()):
        with pytest.raises(SettingsError) as refused:
            inference_access(without)
        assert str(refused.value) == why_none(without)
    address, _ = inference_access(settings(runpod_inference_endpoint_id="inf1", **OF_ANOTHER))
    assert address == "https://proxy.example/v2/inf1"
