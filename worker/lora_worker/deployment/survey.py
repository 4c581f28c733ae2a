"""What there is at RunPod now, and which of it a deployment means: resources are found by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from lora_worker.deployment.resources import DataCenter, Endpoint, GpuType, NetworkVolume, Registry
from lora_worker.deployment.rest import RunPodApi
from lora_worker.deployment.tables import EndpointTable
from lora_worker.errors import DeploymentError


class _Named(Protocol):
    @property
    def id(self) -> str | None: ...
    @property
    def name(self) -> str | None: ...


Resource = TypeVar("Resource", bound=_Named)

_FLASHBOOT_SUFFIX = " -fb"
"""RunPod's older interfaces switch FlashBoot on by this end of an endpoint's name, and show it there."""


@dataclass(frozen=True)
class Survey:
    """The resources of an account, and the catalog."""

    endpoints: tuple[Endpoint, ...] = ()
    volumes: tuple[NetworkVolume, ...] = ()
    registries: tuple[Registry, ...] = ()
    gpu_types: tuple[GpuType, ...] = ()
    data_centers: tuple[DataCenter, ...] = ()

    def endpoint(self, name: str) -> Endpoint | None:
        """Return the endpoint of a name; None if there is none.

        Raises:
            DeploymentError: there are two, or RunPod tells no id of it.
        """
        plain = [replace_name(endpoint) for endpoint in self.endpoints]
        return only_one(plain, name, "endpoints")

    def volume(self, name: str) -> NetworkVolume | None:
        """Return the network volume of a name; None if there is none. Raises as `endpoint` does."""
        return only_one(self.volumes, name, "network volumes")

    def registry_id(self, name: str | None) -> str | None:
        """Return the id of the registry credentials of a name; None where no name is given.

        Raises:
            DeploymentError: there are none of this name, or two.
        """
        if name is None:
            return None
        found = only_one(self.registries, name, "registry credentials")
        if found is None:
            raise DeploymentError(
                f"RunPod holds no registry credentials named {name}: add them in RunPod's console under Settings, "
                "Container Registry Auth, or correct `registry` in the file"
            )
        return found.id

    def volume_ids(self, specification: EndpointTable) -> dict[str, str]:
        """Return the ids of the specification's volumes that exist, by name."""
        found = {volume.name: self.volume(volume.name) for volume in specification.volumes}
        return {name: volume.id for name, volume in found.items() if volume and volume.id}


def replace_name(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint with its plain name."""
    return endpoint.model_copy(update={"name": (endpoint.name or "").removesuffix(_FLASHBOOT_SUFFIX)})


def only_one(resources: Iterable[Resource], name: str, kinds: str) -> Resource | None:
    """Return the resource of a name; None if there is none.

    Raises:
        DeploymentError: there are two of this name, or RunPod tells no id of it.
    """
    found = [resource for resource in resources if resource.name == name]
    if len(found) > 1:
        ids = ", ".join(str(resource.id) for resource in found[:5])
        raise DeploymentError(
            f"RunPod holds {len(found)} {kinds} named {name} ({ids}), and nothing tells which one is meant: delete or "
            "rename the others in RunPod's console, or choose another name in the file"
        )
    if found and found[0].id is None:
        raise DeploymentError(f"RunPod tells no usable id of the one of its {kinds} that is named {name}")
    return found[0] if found else None


async def take_survey(api: RunPodApi, specification: EndpointTable) -> Survey:
    """Look at all that a plan for this specification is made from. Nothing is changed.

    Raises:
        ServiceError: RunPod refuses a call or does not answer.
    """
    resources = await look_at_resources(api)
    return replace(
        resources,
        # Not looked at without need: a key may have no right to see them.
        registries=tuple(await api.list_registries()) if specification.registry else (),
        gpu_types=tuple(await api.list_gpu_types(gpu_count=specification.gpu.count)),
        data_centers=tuple(await api.list_data_centers()) if specification.placement else (),
    )


async def look_at_resources(api: RunPodApi) -> Survey:
    """Look at endpoints and network volumes only. Raises as `take_survey` does."""
    return Survey(endpoints=tuple(await api.list_endpoints()), volumes=tuple(await api.list_volumes()))
