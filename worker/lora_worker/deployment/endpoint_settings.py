"""An endpoint's settings: as a specification wants them, as RunPod has them, and as they are sent there.

Both sides are brought into the same shape, key by key of `deploy.toml`, so that drift is what differs between two
mappings. Lists whose order means nothing are compared as sets, an unset value with what RunPod writes for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_worker.deployment.resources import (
    Endpoint,
    EndpointChange,
    GpuRequest,
    NewEndpoint,
    ScalingRequest,
    WorkersRequest,
)
from lora_worker.deployment.tables import EndpointTable

FIELDS = {
    "image": "image",
    "registry": "registry",
    "disk_gb": "disk",
    "env": "env",
    "gpu.pools": "gpu",
    "gpu.excluded_types": "gpu",
    "gpu.count": "gpu",
    "gpu.min_cuda": "gpu",
    "allowed CUDA versions": "gpu",
    "workers.min": "workers",
    "workers.max": "workers",
    "workers.idle_seconds": "workers",
    "workers.queue_delay_seconds": "scaling",
    "workers.execution_seconds": "timeout",
    "workers.flashboot": "flashboot",
    "data_centers": "data_center_ids",
    "volumes": "network_volumes",
}
"""The field of a request by the key of `deploy.toml`. The list of CUDA versions is not in the file, since the driver is
bounded from below, and `workers.min` only for an endpoint that answers."""

Values = Mapping[str, Any]


def wanted_variables(specification: EndpointTable, found: Mapping[str, str] | None) -> dict[str, str]:
    """Return the variables that an endpoint shall have: the file's, and those that commands set at the endpoint."""
    return {**specification.env, **specification.kept_variables(found or {})}


def wanted_settings(
    specification: EndpointTable, registry_id: str | None, found_variables: Mapping[str, str] | None = None
) -> Values:
    """Return the settings of a specification by the keys of `FIELDS`. Volumes are their names.

    `found_variables` are those of the endpoint, if it is there.
    """
    gpu, workers = specification.gpu, specification.workers
    return {
        "image": specification.image,
        "registry": registry_id,
        "disk_gb": specification.disk_gb,
        "env": wanted_variables(specification, found_variables),
        "gpu.pools": frozenset(gpu.pools),
        "gpu.excluded_types": frozenset(gpu.excluded_types),
        "gpu.count": gpu.count,
        "gpu.min_cuda": gpu.min_cuda,
        "allowed CUDA versions": frozenset(),
        "workers.min": workers.always_on,
        "workers.max": workers.max,
        "workers.idle_seconds": workers.idle_seconds,
        "workers.queue_delay_seconds": round(workers.queue_delay_seconds, 3),
        "workers.execution_seconds": workers.execution_seconds,
        "workers.flashboot": workers.flashboot,
        "data_centers": frozenset(specification.placement),
        "volumes": frozenset(volume.name for volume in specification.volumes),
    }


def found_settings(endpoint: Endpoint, volume_names: Mapping[str, str]) -> Values:
    """Return the settings of an endpoint in the same shape; None where RunPod did not tell a value.

    `volume_names` are the names of the volumes that exist, by id. One that is gone is its id, with a word.
    """
    gpu, workers, volumes = endpoint.gpu, endpoint.workers, endpoint.network_volumes
    return {
        "image": endpoint.image,
        "registry": endpoint.registry or None,
        "disk_gb": endpoint.disk,
        "env": endpoint.env or {},
        "gpu.pools": _set(gpu.pools if gpu else None),
        "gpu.excluded_types": _set(gpu.excluded_types or [] if gpu else None),
        "gpu.count": gpu.count if gpu else None,
        "gpu.min_cuda": (gpu.min_cuda_version or None) if gpu else None,
        "allowed CUDA versions": _set(gpu.allowed_cuda_versions or [] if gpu else None),
        "workers.min": workers.min if workers else None,
        "workers.max": workers.max if workers else None,
        "workers.idle_seconds": workers.idle_timeout if workers else None,
        "workers.queue_delay_seconds": _queue_delay(endpoint),
        "workers.execution_seconds": endpoint.timeout / 1000 if endpoint.timeout is not None else None,
        "workers.flashboot": None if endpoint.flashboot is None else endpoint.flashboot != "OFF",
        "data_centers": _set(endpoint.data_center_ids),
        "volumes": None if volumes is None else frozenset(volume_names.get(id_, f"{id_} (gone)") for id_ in volumes),
    }


def _set(items: list[str] | None) -> frozenset[str] | None:
    return None if items is None else frozenset(items)


def _queue_delay(endpoint: Endpoint) -> float | None:
    """Return after how many seconds of queue a worker is added; None where the endpoint scales by something else."""
    scaling = endpoint.scaling
    if scaling is None or scaling.type != "QUEUE_DELAY" or scaling.queue_delay is None:
        return None
    return round(scaling.queue_delay, 3)


def new_endpoint(
    specification: EndpointTable,
    *,
    registry_id: str | None,
    volume_ids: Mapping[str, str],
    found_variables: Mapping[str, str] | None = None,
) -> NewEndpoint:
    """Return the request that makes the endpoint.

    `volume_ids` are those of all volumes of the file, by name; `found_variables` those of a replaced endpoint.
    """
    fields = _request_fields(specification, registry_id, volume_ids, found_variables)
    gpu: GpuRequest = fields["gpu"]
    # A new endpoint has nothing to clear, and RunPod refuses an empty version there.
    if not gpu.min_cuda_version:
        fields["gpu"] = GpuRequest(**gpu.model_dump(exclude={"min_cuda_version"}))
    if registry_id is None:
        del fields["registry"]
    return NewEndpoint(name=specification.name, type="QUEUE", **fields)


def endpoint_change(
    specification: EndpointTable,
    keys: list[str],
    *,
    registry_id: str | None,
    volume_ids: Mapping[str, str],
    found_variables: Mapping[str, str] | None = None,
) -> EndpointChange:
    """Return the request that brings these keys of an endpoint to what the specification wants; the rest stays."""
    fields = _request_fields(specification, registry_id, volume_ids, found_variables)
    touched = {FIELDS[key] for key in keys}
    return EndpointChange(**{field: value for field, value in fields.items() if field in touched})


def _request_fields(
    specification: EndpointTable,
    registry_id: str | None,
    volume_ids: Mapping[str, str],
    found_variables: Mapping[str, str] | None,
) -> dict[str, Any]:
    gpu, workers = specification.gpu, specification.workers
    return {
        "image": specification.image,
        "registry": registry_id,
        "disk": specification.disk_gb,
        "env": wanted_variables(specification, found_variables),
        "gpu": GpuRequest(
            pools=list(gpu.pools),
            excluded_types=list(gpu.excluded_types),
            count=gpu.count,
            allowed_cuda_versions=[],
            min_cuda_version=gpu.min_cuda or "",
        ),
        "workers": WorkersRequest(min=workers.always_on, max=workers.max, idle_timeout=workers.idle_seconds),
        "scaling": ScalingRequest(type="QUEUE_DELAY", queue_delay=workers.queue_delay_seconds),
        "data_center_ids": list(specification.placement),
        "network_volumes": [volume_ids[volume.name] for volume in specification.volumes],
        "timeout": workers.execution_seconds * 1000,
        "flashboot": "FLASHBOOT" if workers.flashboot else "OFF",
    }
