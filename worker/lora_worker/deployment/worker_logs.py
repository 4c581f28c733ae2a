"""What RunPod's REST API has of the logs of an endpoint's workers, which it drops minutes after their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime

import httpx

from lora_worker.configuration.settings import Settings
from lora_worker.deployment.account import open_api
from lora_worker.deployment.rest import RunPodApi
from lora_worker.launchers.addresses import endpoint_id_of
from lora_worker.launchers.base import ContainerLine, ContainerLogs, LaunchRef
from lora_worker.launchers.runpod.launcher import RunPodLauncher
from lora_worker.launchers.runpod.lines import FOLLOW_SECONDS, read_lines, read_tail, tail_of
from lora_worker.launchers.runpod.settings import RunPodSettings

_MOST_WORKERS = 8
"""Of so many workers of an endpoint the logs are read where it is not known which one had the job."""


def open_container_logs(settings: Settings, http: httpx.AsyncClient) -> Mapping[str, ContainerLogs]:
    """The reader of RunPod's logs, by its launcher's name; empty where its account can't be asked."""
    api = open_api(settings, http)
    if api is None:
        return {}
    assert isinstance(settings, RunPodSettings)
    return {RunPodLauncher.name: WorkerLogs(api, settings.gpu_cluster_api_url)}


class WorkerLogs:
    """Reads the logs of RunPod's workers. `endpoint` is where launches go now."""

    def __init__(self, api: RunPodApi, endpoint: str) -> None:
        self._api = api
        self._endpoint = endpoint

    async def read(self, launch: LaunchRef, container: str | None, *, most_lines: int) -> list[ContainerLine]:
        """See `ContainerLogs.read`. A worker that RunPod does not know any more has no lines."""
        endpoint_id = self._endpoint_id(launch)
        if endpoint_id is None:
            return []
        workers = [container] if container else await self._workers(endpoint_id)
        logs = await asyncio.gather(
            *(
                read_tail(worker, self._api.read_worker_logs(endpoint_id, worker, **tail_of(most_lines)))
                for worker in workers
            )
        )
        return [line for log in logs for line in log]

    async def follow(
        self, launch: LaunchRef, container: str, *, since: datetime | None
    ) -> AsyncIterator[ContainerLine]:
        """See `ContainerLogs.follow`."""
        endpoint_id = self._endpoint_id(launch)
        if endpoint_id is None:
            return
        lines = self._api.read_worker_logs(endpoint_id, container, since=since, idle_seconds=FOLLOW_SECONDS)
        async for line in read_lines(container, lines):
            yield line

    def _endpoint_id(self, launch: LaunchRef) -> str | None:
        return endpoint_id_of(launch.endpoint or self._endpoint)

    async def _workers(self, endpoint_id: str) -> list[str]:
        workers = await self._api.list_workers(endpoint_id)
        # What a worker prints that is ready or at work belongs to the runs that it has taken, not to one that waits.
        starting = [worker.id for worker in workers if worker.id and worker.status not in {"RUNNING", "IDLE"}]
        return starting[-_MOST_WORKERS:]
