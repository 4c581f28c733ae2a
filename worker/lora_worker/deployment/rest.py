"""RunPod's REST API v2 as `deploy` uses it: endpoints, network volumes, registries, catalog, workers, logs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime

from lora_worker.deployment.resources import (
    DataCenter,
    Endpoint,
    EndpointChange,
    GpuType,
    NetworkVolume,
    NewEndpoint,
    NewVolume,
    Registry,
    Releases,
    VolumeChange,
    Worker,
)
from lora_worker.launchers.runpod.resources import LogLine
from lora_worker.launchers.runpod.rest import MOST_LOG_LINES, RestClient


class RunPodApi(RestClient):
    """One account at RunPod. See `RestClient` for what its methods raise."""

    rights = "Serverless and Storage"

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
        most_lines: int = MOST_LOG_LINES,
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
        lines = self._read_log(
            f"/serverless/{endpoint_id}/workers/{worker_id}/logs",
            "read a worker's log",
            tail=tail,
            since=since,
            idle_seconds=idle_seconds,
            most_lines=most_lines,
        )
        async for line in lines:
            yield line
