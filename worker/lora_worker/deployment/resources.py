"""RunPod's resources as its REST API v2 answers them, and the requests that make and change them.

How they are read and written stands in `launchers/runpod/resources.py`.

Source: RunPod's OpenAPI description of the REST API v2, August 2026.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from lora_worker.launchers.runpod.resources import Answer, Name, Readable, Request, ResourceId

_MAX_ITEMS = 10_000

MIN_VOLUME_GB, MAX_VOLUME_GB = 10, 4096
MAX_IDLE_SECONDS = 3600

_Names = Annotated[list[Name], Field(max_length=_MAX_ITEMS)]
_Count = Annotated[int, Field(ge=0, le=10_000_000)]
_Price = Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)]
_Environment = Annotated[dict[Name, str], Field(max_length=_MAX_ITEMS)]

FlashBoot = Literal["OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"]
VolumeType = Literal["STANDARD", "HIGH_PERFORMANCE"]


class EndpointGpu(Answer):
    """The GPUs on which an endpoint's workers may be placed. An empty `min_cuda_version` is none."""

    pools: Readable[_Names] = None
    excluded_types: Readable[_Names] = None
    count: Readable[_Count] = None
    allowed_cuda_versions: Readable[_Names] = None
    min_cuda_version: Readable[Name] = None


class Workers(Answer):
    """How many workers an endpoint may have, and after how many idle seconds one ends."""

    min: Readable[_Count] = None
    max: Readable[_Count] = None
    idle_timeout: Readable[_Count] = None


class Scaling(Answer):
    """When an endpoint gets another worker: after so many seconds of queue, where its type says so."""

    type: Readable[Name] = None
    queue_delay: Readable[float] = None


class RequestUrls(Answer):
    """Where an endpoint takes jobs."""

    run: Readable[Name] = None


class Endpoint(Answer):
    """A serverless endpoint. `timeout` is in milliseconds, `disk` in GB."""

    id: Readable[ResourceId] = None
    name: Readable[Name] = None
    type: Readable[Name] = None
    request_urls: Readable[RequestUrls] = None
    image: Readable[Name] = None
    disk: Readable[_Count] = None
    env: Readable[_Environment] = None
    registry: Readable[Name] = None
    gpu: Readable[EndpointGpu] = None
    cpu: Readable[Annotated[list[Any], Field(max_length=_MAX_ITEMS)]] = None
    """The CPU flavours of an endpoint without GPUs."""
    workers: Readable[Workers] = None
    scaling: Readable[Scaling] = None
    data_center_ids: Readable[_Names] = None
    network_volumes: Readable[_Names] = None
    timeout: Readable[Annotated[int, Field(ge=0)]] = None
    flashboot: Readable[Name] = None


class NetworkVolume(Answer):
    """A network volume. `size` is in GB and can only grow; data centre and type never change."""

    id: Readable[ResourceId] = None
    name: Readable[Name] = None
    size: Readable[_Count] = None
    data_center: Readable[Name] = None
    type: Readable[Name] = None


class Registry(Answer):
    """The credentials of a container registry, without them."""

    id: Readable[ResourceId] = None
    name: Readable[Name] = None


class Price(Answer):
    """List prices in USD for one GPU and one hour; `serverless` is missing for a GPU that is in no pool."""

    serverless: Readable[_Price] = None


class Stock(Answer):
    """How much of something is free in a data centre now: NONE, LOW, MEDIUM or HIGH."""

    id: Readable[Name] = None
    availability: Readable[Name] = None


def has_fixed_tag(image: str) -> bool:
    """Tell whether an image is named by a digest or a tag of its own: machines keep a copy of `latest`, and run it."""
    tag = image.rpartition("/")[2].partition(":")[2]
    return "@" in image or tag not in {"", "latest"}


class GpuType(Answer):
    """A GPU of the catalog. `memory` is in GB; stock is there only where it was asked for."""

    id: Readable[Name] = None
    name: Readable[Name] = None
    pool: Readable[Name] = None
    memory: Readable[_Count] = None
    price: Readable[Price] = None
    availability: Readable[Name] = None
    data_centers: Readable[Annotated[list[Stock], Field(max_length=_MAX_ITEMS)]] = None


class DataCenter(Answer):
    """A data centre, and the types of network volumes that it has."""

    id: Readable[Name] = None
    name: Readable[Name] = None
    network_volume_types: Readable[_Names] = None


class Worker(Answer):
    """A worker of an endpoint. Its status is RUNNING, IDLE, INITIALIZING, THROTTLED or UNHEALTHY."""

    id: Readable[ResourceId] = None
    status: Readable[Name] = None
    started_at: Readable[Name] = None


class Releases(Answer):
    """The releases of an endpoint, of which the newest's number is read. Workers of an older one are replaced."""

    endpoint_version: Readable[_Count] = None


class GpuRequest(Request):
    """The GPUs of an endpoint to make or change.

    A change sends pools and exclusions together: pools alone would clear the exclusions. An empty `min_cuda_version`
    clears the one that an endpoint has, and is refused for a new endpoint.
    """

    pools: list[str]
    excluded_types: list[str]
    count: int
    allowed_cuda_versions: list[str]
    min_cuda_version: str | None = None


class WorkersRequest(Request):
    """The number of workers and their idle time-out in seconds."""

    min: int
    max: int
    idle_timeout: int


class ScalingRequest(Request):
    """Another worker starts when a job has waited for so many seconds."""

    type: Literal["QUEUE_DELAY"]
    queue_delay: float


class EndpointChange(Request):
    """A change of an endpoint: what is set is replaced, the rest stays. `timeout` is in milliseconds."""

    image: str | None = None
    disk: int | None = None
    env: dict[str, str] | None = None
    registry: str | None = None
    gpu: GpuRequest | None = None
    workers: WorkersRequest | None = None
    scaling: ScalingRequest | None = None
    data_center_ids: list[str] | None = None
    network_volumes: list[str] | None = None
    timeout: int | None = None
    flashboot: FlashBoot | None = None


class NewEndpoint(EndpointChange):
    """An endpoint to make. Its jobs wait in a queue."""

    name: str
    type: Literal["QUEUE"]


class NewVolume(Request):
    """A network volume to make. `size` is in GB; without a type the data centre's usual one is taken."""

    name: str
    size: Annotated[int, Field(ge=MIN_VOLUME_GB, le=MAX_VOLUME_GB)]
    data_center: str
    type: VolumeType | None = None


class VolumeChange(Request):
    """A network volume to enlarge, in GB."""

    size: Annotated[int, Field(ge=MIN_VOLUME_GB, le=MAX_VOLUME_GB)]
