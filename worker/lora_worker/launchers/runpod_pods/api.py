"""The calls of RunPod's REST API v2 that pods need, and what is read of a pod."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import AwareDatetime, Field

from lora_worker.launchers.answers import answered_at
from lora_worker.launchers.runpod.resources import Answer, LogLine, Name, Readable, Request, ResourceId
from lora_worker.launchers.runpod.rest import MOST_LOG_LINES, RestClient

VOLUME_PATH = "/runpod-volume"
"""Where the trainer's image expects the network volume, as on serverless workers."""


_Price = Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)]


class Runtime(Answer):
    """What RunPod measures of a running pod. `uptime` counts from the last start of its container."""

    uptime: Readable[Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]] = None


class PodGpus(Answer):
    """The GPUs of a pod: RunPod's id of their type, and how many."""

    id: Readable[Name] = None
    count: Readable[Annotated[int, Field(ge=1, le=1000)]] = None


class Pod(Answer):
    """A pod, as far as the worker reads it."""

    id: Readable[ResourceId] = None
    name: Readable[Name] = None
    status: Readable[Name] = None
    env: Readable[Annotated[dict[Name, str], Field(max_length=1000)]] = None
    data_center_id: Readable[Name] = None
    runtime: Readable[Runtime] = None
    created_at: Readable[AwareDatetime] = None
    started_at: Readable[AwareDatetime] = None
    gpu: Readable[PodGpus] = None


class PodPrice(Answer):
    """List prices in USD for one GPU of a pod and one hour, by the cloud."""

    secure: Readable[_Price] = None
    community: Readable[_Price] = None


class PodGpu(Answer):
    """A GPU of the catalog, with its price and how many pods of it there are: NONE, LOW, MEDIUM or HIGH."""

    id: Readable[Name] = None
    availability: Readable[Name] = None
    price: Readable[PodPrice] = None


class GpuRequest(Request):
    """The GPUs of a pod to make."""

    id: str
    count: int
    min_cuda_version: str | None = None


class NetworkMount(Request):
    """A network volume, and where the container finds it."""

    volume_id: str
    path: str


class Mounts(Request):
    """What is mounted into a pod: one network volume."""

    network: list[NetworkMount]


class NewPod(Request):
    """A pod to make. `disk` is in GB, and empty again whenever the container starts anew."""

    name: str
    image: str
    args: str
    disk: int
    env: dict[str, str]
    cloud: str
    gpu: GpuRequest
    mounts: Mounts | None = None
    data_center_ids: list[str] | None = None
    registry: str | None = None


class PodsApi(RestClient):
    """The pods of one account at RunPod. See `RestClient` for what its methods raise."""

    rights = "Pods"

    async def list_pods(self) -> tuple[list[Pod], datetime | None]:
        """Return all pods of the account that belong to no cluster, and the time of the answer by RunPod's clock."""
        answer = await self._repeated("GET", "/pods", "list pods")
        return await self._items(answer, "pods", Pod, "list pods"), answered_at(answer.headers)

    async def read_pod(self, pod_id: str) -> Pod | None:
        """Return a pod; None where RunPod knows no such one."""
        return await self._found(f"/pods/{pod_id}", Pod, "read the pod")

    async def create_pod(self, wanted: NewPod) -> Pod:
        """Make a pod. The answer has an id."""
        return await self._create("/pods", wanted, Pod, "make the pod")

    async def delete_pod(self, pod_id: str) -> None:
        """Terminate a pod and delete what is on its disk. One that is gone already is no error."""
        await self._delete(f"/pods/{pod_id}", "terminate the pod")

    async def read_stock(self, gpu_id: str, *, gpu_count: int, cloud: str) -> PodGpu | None:
        """Return how many pods there are now with so many of these GPUs; None where RunPod has no such GPU."""
        query: dict[str, Any] = {"include": "AVAILABILITY", "product": "POD", "count": str(gpu_count), "cloud": cloud}
        return await self._found(f"/catalog/gpus/{quote(gpu_id)}", PodGpu, "read the GPU's stock", query=query)

    def read_log(
        self,
        pod_id: str,
        *,
        tail: int = 200,
        since: datetime | None = None,
        idle_seconds: float = 5.0,
        most_lines: int = MOST_LOG_LINES,
    ) -> AsyncIterator[LogLine]:
        """The lines of a pod's log, container and system, oldest first. See `RestClient`."""
        return self._read_log(
            f"/pods/{pod_id}/logs",
            "read a pod's log",
            tail=tail,
            since=since,
            idle_seconds=idle_seconds,
            most_lines=most_lines,
        )
