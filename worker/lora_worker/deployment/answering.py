"""The endpoint that answers with finished adapters, as promoting one needs it: which base it has, and new workers."""

from __future__ import annotations

from datetime import datetime

import httpx

from lora_worker.configuration.settings import Settings
from lora_worker.deployment.account import open_api
from lora_worker.deployment.releasing import read_or_refuse, release_again
from lora_worker.deployment.rest import RunPodApi
from lora_worker.errors import DeploymentError
from lora_worker.launchers.runpod.settings import RunPodSettings

_MODEL = "MODEL_NAME"
"""The variable in which worker-vllm finds its base model."""


class Answering:
    """The endpoint that answers with finished adapters."""

    def __init__(self, api: RunPodApi, endpoint_id: str) -> None:
        self._api = api
        self._endpoint_id = endpoint_id

    async def served_base(self) -> str:
        """Return the name of the base model that the endpoint serves.

        Raises:
            DeploymentError: there is no such endpoint, or it does not say.
            ServiceError: RunPod refused the call or failed.
        """
        found = await read_or_refuse(self._api, self._endpoint_id)
        base = (found.env or {}).get(_MODEL)
        if not base:
            raise DeploymentError(
                f"the endpoint {self._endpoint_id} names no base model in {_MODEL}: `lora-worker deploy inference "
                "apply` sets it"
            )
        return base

    async def workers(self) -> set[str]:
        """Return the ids of the workers that it has now, whatever they do.

        Raises:
            ServiceError: RunPod refused the call or failed.
        """
        return {worker.id for worker in await self._api.list_workers(self._endpoint_id) if worker.id}

    async def replace_workers(self, at: datetime) -> None:
        """Have its workers replaced one by one, so that none goes on with an adapter that it loaded before.

        Raises:
            DeploymentError, ServiceError: as `lora_worker.deployment.releasing.release_again`.
        """
        await release_again(self._api, self._endpoint_id, at)


def open_answering(settings: Settings, http: httpx.AsyncClient) -> Answering | None:
    """Return the endpoint that these settings name; None where they name none, or its account can't be asked."""
    api = open_api(settings, http)
    if api is None or not isinstance(settings, RunPodSettings) or not settings.runpod_inference_endpoint_id:
        return None
    return Answering(api, settings.runpod_inference_endpoint_id)


def why_none(settings: Settings) -> str:
    """Say why `open_answering` finds no endpoint by these settings, and behind a colon what to do, without an end."""
    if not isinstance(settings, RunPodSettings):
        return (
            "only RunPod has an endpoint that answers with adapters, and LORA_WORKER_LAUNCHER names another launcher: "
            "`lora-worker export` fetches the adapter for a server of your own"
        )
    if not settings.runpod_inference_endpoint_id:
        return (
            "no endpoint is set that answers with adapters: `lora-worker deploy inference apply` makes one; set "
            "LORA_WORKER_RUNPOD_INFERENCE_ENDPOINT_ID to its id (--write-env does)"
        )
    return (
        f"the account of the endpoint {settings.runpod_inference_endpoint_id} can't be asked, as GPU_CLUSTER_API_URL "
        "is not RunPod's own and RunPod does not get its key: set LORA_WORKER_RUNPOD_API_URL to that account's REST API"
    )
