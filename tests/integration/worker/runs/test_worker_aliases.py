"""A promoted version lies under its alias on the endpoint's volume, and a rollback puts the one before there again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from lora_contract.serving import MARKER_NAME, SERVING_FOLDER
from lora_worker.deployment.releasing import ALIASES_AT
from lora_worker.duties.alias_releases import AliasReleases
from lora_worker.duties.served_adapters import ServedAdapters
from lora_worker.errors import PromotionRefusedError
from lora_worker.launchers.runpod.settings import RunPodSettings
from lora_worker.services import Services, open_services
from lora_worker.versions.promotion import find_alias, promote, roll_back
from tests.application.user import BASE_MODEL
from tests.integration.worker.deployment.console import call
from tests.processes.stage import Stage
from tests.processes.waiting import PATIENCE_SECONDS

NAME = "stage-bot"


@pytest.fixture
def answering(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The id of an endpoint that answers with adapters of the trainings' base model; the environment names it."""
    made = call(stage.runpod, "POST", "serverless", {
        "name": "answers", "type": "QUEUE", "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4}, "image": "vllm:1",
        "gpu": {"pools": ["ADA_24"]}, "env": {"MODEL_NAME": BASE_MODEL}, "workers": {"max": 0},
    })  # fmt: skip
    variables = stage.environment(
        LORA_WORKER_RUNPOD_API_URL=stage.runpod.rest_url, LORA_WORKER_RUNPOD_INFERENCE_ENDPOINT_ID=made["id"]
    )
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    yield made["id"]
    call(stage.runpod, "DELETE", f"serverless/{made['id']}")


async def carried_out(services: Services) -> None:
    """Do what a worker's duties do, round by round, until the alias is served."""
    duties = ServedAdapters(services), AliasReleases(services)
    ends_at = time.monotonic() + PATIENCE_SECONDS
    while not (await find_alias(services, NAME))["served"]:
        assert time.monotonic() < ends_at, await find_alias(services, NAME)
        for duty in duties:
            await duty.run_once()
        await asyncio.sleep(0.1)


async def test_alias_follows_promotions_and_rollbacks(stage: Stage, gpu_volume: Path, answering: str) -> None:
    dataset = stage.user.upload()
    first, second = (stage.user.queue(dataset, max_steps=5) for _ in range(2))
    worker = stage.worker()
    for job in (first, second):
        assert stage.ended(job)["status"] == "completed"
    stage.stop(worker)

    def now() -> tuple[str, str | None]:
        """Whose adapter lies under the alias, and when the endpoint's workers were last replaced."""
        marker = gpu_volume / SERVING_FOLDER / f"{NAME}:live" / MARKER_NAME
        variables = call(stage.runpod, "GET", f"serverless/{answering}")["env"]
        return json.loads(marker.read_text())["job_id"], variables.get(ALIASES_AT)

    async with open_services(RunPodSettings(_env_file=None)) as services:
        await promote(services, UUID(first), name=NAME, anyway=False, by="ann")
        await carried_out(services)
        # Nobody can have loaded anything under a name that is new.
        assert now() == (first, None)
        # The family's only alias is meant.
        await promote(services, UUID(second), name=None, anyway=False, by="ann")
        await carried_out(services)
        holder, released_at = now()
        assert (holder, released_at is None) == (second, False)
        await roll_back(services, NAME, by="bob")
        await carried_out(services)
        assert now()[0] == first
        assert now()[1] != released_at
        with pytest.raises(PromotionRefusedError, match="has no earlier target"):
            await roll_back(services, NAME, by="bob")
        history = await services.queue.training_alias_history(NAME)
    assert [move["moved_by"] for move in history] == ["bob", "ann", "ann"]
