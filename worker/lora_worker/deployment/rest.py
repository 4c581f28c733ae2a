"""Client of RunPod's REST API v2 (api.runpod.io/v2): endpoints, network volumes, registries, catalog, workers, logs.

What can be repeated without harm (reading, changing, deleting) is repeated when RunPod is unavailable. Creating is not:
names are not unique there, so a repeated POST makes a second resource. Where the answer to a POST is lost, the call
ends with `CreationInDoubtError`, and its caller looks for the resource before it creates it again. Requests that RunPod
did not take (429, no connection) are repeated in any case.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

from lora_contract.connections import why_unreachable
from lora_worker.deployment.events import read_log_lines
from lora_worker.deployment.problems import explain_refusal
from lora_worker.deployment.resources import (
    Answer,
    DataCenter,
    Endpoint,
    EndpointChange,
    GpuType,
    LogLine,
    NetworkVolume,
    NewEndpoint,
    NewVolume,
    Registry,
    Releases,
    Request,
    VolumeChange,
    Worker,
)
from lora_worker.errors import CreationInDoubtError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.launchers.answers import Answer as HttpAnswer
from lora_worker.launchers.answers import read_answer, retry_after_seconds
from lora_worker.observability.calls import called

SERVICE = "RunPod's REST API"
_MEASURED_AS = "account"
"""The service's name in metrics: the jobs' API is `launcher` there."""

_MAX_ATTEMPTS = 5
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 60.0
"""RunPod's shortest window of requests is a minute; for a longer one a command does not wait."""
_DEFAULT_PAUSE_SECONDS = 5.0
_MAX_ITEMS = 10_000
_WINDOW = re.compile(r";\s*r=(\d{1,9})\b[^,]*?;\s*t=(\d{1,9})\b")
_MAX_LOG_LINES = 5000
"""RunPod gives no more lines of the past."""

AnyAnswer = TypeVar("AnyAnswer", bound=Answer)


class RunPodApi:
    """One account at RunPod.

    All methods raise the following. Texts are one sentence each and show no key.

    Raises:
        ServiceRefusedError: RunPod refuses the call; the text names the field or the right that is missing.
        ServiceUnavailableError: RunPod could not be reached or failed, also after retries.
        CreationInDoubtError: (creating only) the answer was lost; the resource may exist.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        http: httpx.AsyncClient,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Make a client; `sleep` also serves those who wait for something that they asked it for.

        `on_wait` is told, in one sentence, why the client waits before it repeats a call.
        """
        self._url = url.rstrip("/")
        self.key = key
        self.http = http
        self.sleep = sleep
        self._on_wait = on_wait

    async def list_endpoints(self) -> list[Endpoint]:
        """Return all endpoints of the account."""
        return await self._list("/serverless", "endpoints", Endpoint, "list endpoints")

    async def list_volumes(self) -> list[NetworkVolume]:
        """Return all network volumes of the account."""
        return await self._list("/network-volumes", "networkVolumes", NetworkVolume, "list network volumes")

    async def list_registries(self) -> list[Registry]:
        """Return the credentials of container registries that the account holds, without the credentials."""
        return await self._list("/registries", "registries", Registry, "list registry credentials")

    async def list_gpu_types(self, *, gpu_count: int = 1) -> list[GpuType]:
        """Return the catalog's GPUs, with the stock for serverless workers of `gpu_count` GPUs each."""
        query = {"include": "AVAILABILITY", "product": "SERVERLESS", "count": str(gpu_count)}
        return await self._list("/catalog/gpus", "gpus", GpuType, "list GPU types", query=query)

    async def list_data_centers(self) -> list[DataCenter]:
        """Return the catalog's data centres."""
        return await self._list("/catalog/datacenters", "dataCenters", DataCenter, "list data centres")

    async def list_workers(self, endpoint_id: str) -> list[Worker]:
        """Return the workers that an endpoint has now."""
        return await self._list(f"/serverless/{endpoint_id}/workers", "workers", Worker, "list an endpoint's workers")

    async def read_endpoint(self, endpoint_id: str) -> Endpoint | None:
        """Return an endpoint; None where RunPod knows no such one."""
        return await self._found(f"/serverless/{endpoint_id}", Endpoint, "read the endpoint")

    async def read_release(self, endpoint_id: str) -> int | None:
        """Return the number of an endpoint's release, which grows by one with each; None where RunPod tells none."""
        doing = "read the endpoint's releases"
        answer = await self._repeated("GET", f"/serverless/{endpoint_id}/releases", doing)
        return self._read(Releases, await self._body(answer, doing), doing).endpoint_version

    async def create_endpoint(self, wanted: NewEndpoint) -> Endpoint:
        """Make an endpoint. The answer has an id."""
        return await self._create("/serverless", wanted, Endpoint, "make the endpoint")

    async def update_endpoint(self, endpoint_id: str, change: EndpointChange) -> Endpoint:
        """Change an endpoint. What concerns its container makes a new release, which its workers take one by one."""
        return await self._change(f"/serverless/{endpoint_id}", change, Endpoint, "change the endpoint")

    async def delete_endpoint(self, endpoint_id: str) -> None:
        """Delete an endpoint with all its workers and jobs. One that is gone already is no error."""
        await self._delete(f"/serverless/{endpoint_id}", "delete the endpoint")

    async def create_volume(self, wanted: NewVolume) -> NetworkVolume:
        """Make a network volume. The answer has an id."""
        return await self._create("/network-volumes", wanted, NetworkVolume, "make the network volume")

    async def update_volume(self, volume_id: str, change: VolumeChange) -> NetworkVolume:
        """Enlarge a network volume."""
        return await self._change(f"/network-volumes/{volume_id}", change, NetworkVolume, "enlarge the network volume")

    async def delete_volume(self, volume_id: str) -> None:
        """Delete a network volume and what it holds. One that is gone already is no error."""
        await self._delete(f"/network-volumes/{volume_id}", "delete the network volume")

    async def read_worker_logs(
        self,
        endpoint_id: str,
        worker_id: str,
        *,
        tail: int = 200,
        since: datetime | None = None,
        idle_seconds: float = 5.0,
        most_lines: int = _MAX_LOG_LINES,
    ) -> AsyncIterator[LogLine]:
        """Yield the lines of a worker's log, container and system, oldest first.

        RunPod's stream has no end: this one ends after `idle_seconds` without a line, or after `most_lines`. It is not
        retried. A log of a worker that is gone is kept for about two minutes.

        Args:
            endpoint_id: the endpoint's id.
            worker_id: the worker's id, as `list_workers` or a job's status says it.
            tail: how many lines of the past, 5000 at most; not heeded where `since` is set.
            since: begin at this time.
            idle_seconds: how long to wait for another line.
            most_lines: after so many lines the stream ends.
        """
        query = {"tail": str(min(tail, _MAX_LOG_LINES))} if since is None else {"since": since.isoformat()}
        doing = "read a worker's log"
        timeout = httpx.Timeout(20, read=idle_seconds)
        url = f"{self._url}/serverless/{endpoint_id}/workers/{worker_id}/logs"
        headers = {**self._headers(), "Accept": "text/event-stream"}
        try:
            async with self.http.stream(
                "GET", url, params=query, headers=headers, timeout=timeout, extensions=called(_MEASURED_AS, "logs")
            ) as response:
                if response.status_code != 200:
                    raise await self._refusal(await read_answer(response), doing)
                try:
                    async for line in read_log_lines(response, most_lines=most_lines):
                        yield line
                except httpx.ReadTimeout:
                    return
        except httpx.HTTPError as error:
            raise ServiceUnavailableError(SERVICE, f"RunPod is not reachable: {why_unreachable(error)}") from None

    async def _list(
        self, path: str, within: str, kind: type[AnyAnswer], doing: str, *, query: Mapping[str, str] | None = None
    ) -> list[AnyAnswer]:
        body = await self._body(await self._repeated("GET", path, doing, query=query), doing)
        items = body.get(within) if isinstance(body, dict) else None
        if not isinstance(items, list) or len(items) > _MAX_ITEMS:
            raise ServiceUnavailableError(SERVICE, f"RunPod's answer is not readable: could not {doing}")
        return [kind.model_validate(item) for item in items if isinstance(item, dict)]

    async def _found(self, path: str, kind: type[AnyAnswer], doing: str) -> AnyAnswer | None:
        try:
            answer = await self._repeated("GET", path, doing)
        except ServiceRefusedError as error:
            if error.status == 404:
                return None
            raise
        return self._read(kind, await self._body(answer, doing), doing)

    async def _change(self, path: str, change: Request, kind: type[AnyAnswer], doing: str) -> AnyAnswer:
        answer = await self._repeated("PATCH", path, doing, body=change.body())
        return self._read(kind, await self._body(answer, doing), doing)

    async def _delete(self, path: str, doing: str) -> None:
        try:
            await self._repeated("DELETE", path, doing)
        except ServiceRefusedError as error:
            if error.status != 404:
                raise

    async def _create(self, path: str, wanted: Request, kind: type[AnyAnswer], doing: str) -> AnyAnswer:
        answer = await self._repeated("POST", path, doing, body=wanted.body())
        try:
            made = self._read(kind, await self._body(answer, doing), doing)
        except ServiceUnavailableError as error:
            raise CreationInDoubtError(SERVICE, str(error)) from None
        if getattr(made, "id", None) is None:
            raise CreationInDoubtError(SERVICE, f"RunPod's answer holds no id: could not {doing}")
        return made

    @staticmethod
    def _read(kind: type[AnyAnswer], body: Any, doing: str) -> AnyAnswer:
        try:
            return kind.model_validate(body)
        except ValidationError:
            raise ServiceUnavailableError(SERVICE, f"RunPod's answer is not readable: could not {doing}") from None

    @staticmethod
    async def _body(answer: HttpAnswer, doing: str) -> Any:
        try:
            return await answer.json()
        except (ValueError, RecursionError):
            raise ServiceUnavailableError(SERVICE, f"RunPod's answer is not readable: could not {doing}") from None

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}", "Accept": "application/json"}

    async def _repeated(
        self, method: str, path: str, doing: str, *, query: Mapping[str, str] | None = None, body: Any = None
    ) -> HttpAnswer:
        """Send a request until RunPod answers it, at most `_MAX_ATTEMPTS` times; a 2xx is returned."""
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                return await self._once(method, path, doing, query=query, body=body)
            except CreationInDoubtError:
                raise
            except ServiceUnavailableError as error:
                wait = error.retry_after_seconds
                if wait is None:
                    wait = _FIRST_WAIT_SECONDS * 2**attempt * random.uniform(0.5, 1)  # noqa: S311 jitter, no secret
                if attempt == _MAX_ATTEMPTS or wait > _LONGEST_WAIT_SECONDS:
                    raise
                self._on_wait(f"{error}; next try in {wait:.0f} s")
            await self.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    async def _once(
        self, method: str, path: str, doing: str, *, query: Mapping[str, str] | None, body: Any
    ) -> HttpAnswer:
        headers, content = self._headers(), None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body, allow_nan=False).encode()
        creates = method == "POST"
        try:
            async with self.http.stream(
                method,
                f"{self._url}{path}",
                params=query,
                headers=headers,
                content=content,
                # The first part of a path is a name of our own code; ids come after it.
                extensions=called(_MEASURED_AS, path.split("/")[1]),
            ) as response:
                answer = await read_answer(response)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            # Nothing was sent.
            raise ServiceUnavailableError(SERVICE, f"RunPod is not reachable: {why_unreachable(error)}") from None
        except httpx.HTTPError as error:
            lost = CreationInDoubtError if creates else ServiceUnavailableError
            raise lost(SERVICE, f"RunPod gave no answer ({doing}): {why_unreachable(error)}") from None
        if answer.is_success:
            return answer
        if creates and answer.status_code >= 500:
            raise CreationInDoubtError(SERVICE, f"RunPod failed ({answer.status_code}) while it should {doing}")
        raise await self._refusal(answer, doing)

    async def _refusal(self, answer: HttpAnswer, doing: str) -> ServiceUnavailableError | ServiceRefusedError:
        status = answer.status_code
        if status == 429:
            seconds = _pause_seconds(answer.headers)
            return ServiceUnavailableError(
                SERVICE,
                f"RunPod takes no more requests for {seconds:.0f} s (429): could not {doing} yet",
                retry_after_seconds=seconds,
            )
        if status >= 500 or status == 408:
            return ServiceUnavailableError(SERVICE, f"RunPod failed ({status}) while it should {doing}")
        try:
            problem = await answer.json()
        except (ValueError, RecursionError):
            problem = None
        return ServiceRefusedError(SERVICE, explain_refusal(status, doing, problem, key=self.key), status=status)


def _pause_seconds(headers: Mapping[str, str]) -> float:
    """Return how long to wait after a 429: `Retry-After`, or until the last window of `RateLimit` that is used up."""
    said = retry_after_seconds(headers)
    if said is not None:
        return said
    windows = [(int(left), int(seconds)) for left, seconds in _WINDOW.findall(headers.get("ratelimit", ""))]
    return float(max((seconds for left, seconds in windows if left == 0), default=_DEFAULT_PAUSE_SECONDS))
