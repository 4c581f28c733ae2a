"""What RunPod's REST API has of the logs of an endpoint's workers, which it drops minutes after their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import datetime

import httpx

from lora_worker.configuration.settings import Settings
from lora_worker.deployment.account import open_api
from lora_worker.deployment.resources import LogLine
from lora_worker.deployment.rest import RunPodApi
from lora_worker.errors import ServiceRefusedError
from lora_worker.launchers.addresses import endpoint_id_of
from lora_worker.launchers.base import ContainerLine, ContainerLogs, LaunchRef
from lora_worker.launchers.runpod import RunPodLauncher
from lora_worker.launchers.runpod_settings import RunPodSettings

_MOST_WORKERS = 8
"""Of so many workers of an endpoint the logs are read where it is not known which one had the job."""
_IDLE_SECONDS = 5.0
"""RunPod's stream has no end: after so long without a line, all lines of the past have come."""
_TAIL_SECONDS = 12.0
"""Who asks gives up after twenty seconds, with all that was read."""
_FOLLOW_SECONDS = 10.0


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
        logs = await asyncio.gather(*(self._tail(endpoint_id, worker, most_lines) for worker in workers))
        return [line for log in logs for line in log]

    async def follow(
        self, launch: LaunchRef, container: str, *, since: datetime | None
    ) -> AsyncIterator[ContainerLine]:
        """See `ContainerLogs.follow`."""
        endpoint_id = self._endpoint_id(launch)
        if endpoint_id is None:
            return
        lines = self._api.read_worker_logs(endpoint_id, container, since=since, idle_seconds=_FOLLOW_SECONDS)
        try:
            async for line in lines:
                yield _line_of(container, line)
        except ServiceRefusedError as error:
            if error.status != 404:
                raise

    def _endpoint_id(self, launch: LaunchRef) -> str | None:
        return endpoint_id_of(launch.endpoint or self._endpoint)

    async def _workers(self, endpoint_id: str) -> list[str]:
        workers = await self._api.list_workers(endpoint_id)
        # What a worker prints that is ready or at work belongs to the runs that it has taken, not to one that waits.
        starting = [worker.id for worker in workers if worker.id and worker.status not in {"RUNNING", "IDLE"}]
        return starting[-_MOST_WORKERS:]

    async def _tail(self, endpoint_id: str, worker: str, most_lines: int) -> list[ContainerLine]:
        found: list[ContainerLine] = []
        try:
            lines = self._api.read_worker_logs(
                endpoint_id, worker, tail=most_lines, idle_seconds=_IDLE_SECONDS, most_lines=most_lines
            )
            # A container that goes on printing is never silent: what has come by then is better than nothing.
            with suppress(TimeoutError):
                async with asyncio.timeout(_TAIL_SECONDS):
                    async for line in lines:
                        found.append(_line_of(worker, line))
        except ServiceRefusedError as error:
            if error.status != 404:
                raise
        return found


def _line_of(worker: str, line: LogLine) -> ContainerLine:
    try:
        at = datetime.fromisoformat(line.ts) if line.ts else None
    except ValueError:
        at = None
    # A time without a zone can't be compared with others.
    at = at if at is not None and at.tzinfo is not None else None
    return ContainerLine(worker, line.line, is_launchers=line.source == "system", at=at)
