"""What RunPod's REST API has of the logs of an endpoint's workers, which it drops minutes after their end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import datetime
from urllib.parse import urlsplit

import httpx

from lora_worker.configuration.addresses import is_under
from lora_worker.configuration.settings import Settings
from lora_worker.deployment.resources import LogLine
from lora_worker.deployment.rest import RunPodApi
from lora_worker.errors import ServiceRefusedError
from lora_worker.launchers.base import ContainerLine, ContainerLogs, LaunchRef
from lora_worker.launchers.runpod_settings import REST_URL, RunPodSettings

_MOST_WORKERS = 8
"""Of so many workers of an endpoint the logs are read where it is not known which one had the job."""
_IDLE_SECONDS = 5.0
"""RunPod's stream has no end: after so long without a line, all lines of the past have come."""
_FOLLOW_SECONDS = 10.0
_ENDPOINT_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


def open_container_logs(settings: Settings, http: httpx.AsyncClient) -> ContainerLogs | None:
    """The reader of these settings' logs; None where the launcher is another, or its account can't be asked."""
    if not isinstance(settings, RunPodSettings):
        return None
    host = urlsplit(settings.gpu_cluster_api_url).hostname or ""
    if settings.runpod_api_url == REST_URL and not is_under(host, "runpod.ai"):
        # The key belongs to somebody else's API, so RunPod does not get it.
        return None
    key = settings.gpu_cluster_api_key.get_secret_value()
    return WorkerLogs(RunPodApi(settings.runpod_api_url, key, http=http), settings.gpu_cluster_api_url)


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
        found = (launch.endpoint or self._endpoint).rpartition("/")[2]
        return found if _ENDPOINT_ID.fullmatch(found) else None

    async def _workers(self, endpoint_id: str) -> list[str]:
        workers = await self._api.list_workers(endpoint_id)
        # What a worker prints that is ready or at work belongs to the runs that it has taken, not to one that waits.
        starting = [worker.id for worker in workers if worker.id and worker.status not in {"RUNNING", "IDLE"}]
        return starting[-_MOST_WORKERS:]

    async def _tail(self, endpoint_id: str, worker: str, most_lines: int) -> list[ContainerLine]:
        try:
            lines = self._api.read_worker_logs(
                endpoint_id, worker, tail=most_lines, idle_seconds=_IDLE_SECONDS, most_lines=most_lines
            )
            return [_line_of(worker, line) async for line in lines]
        except ServiceRefusedError as error:
            if error.status == 404:
                return []
            raise


def _line_of(worker: str, line: LogLine) -> ContainerLine:
    try:
        at = datetime.fromisoformat(line.ts) if line.ts else None
    except ValueError:
        at = None
    # A time without a zone can't be compared with others.
    at = at if at is not None and at.tzinfo is not None else None
    return ContainerLine(worker, line.line, is_launchers=line.source == "system", at=at)
