"""The account's templates, network volumes and registries, and the rules between them and the endpoints.

Everything is stored as the JSON that the API answers with. Where RunPod documents a refusal but not its status, it is
400 here.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sandbox.runpod.rest.catalog import Catalog
from sandbox.runpod.rest.endpoints import Endpoints
from sandbox.runpod.rest.problems import ProblemError
from sandbox.runpod.rest.requests import (
    CreateEndpoint,
    CreateRegistry,
    CreateTemplate,
    CreateVolume,
    UpdateEndpoint,
    UpdateTemplate,
    UpdateVolume,
)

Resource = dict[str, Any]

_MOST_VARIABLES = 50


class Account:
    """Everything that the key's owner has. Names need not be unique.

    Each method raises `ProblemError` if the API would refuse the call.
    """

    def __init__(self, catalog: Catalog, clock: Callable[[], float], jobs_url: str) -> None:
        self.catalog = catalog
        self.volumes: dict[str, Resource] = {}
        self.registries: dict[str, Resource] = {}
        self.templates: dict[str, Resource] = {}
        self.endpoints = Endpoints(catalog, jobs_url)
        self.volume_deleted: Callable[[str], None] = lambda _: None
        """Called with the id of a volume when it is deleted."""
        self._clock = clock

    # Network volumes

    def create_volume(self, body: CreateVolume) -> Resource:
        """Create a network volume in a data centre that has such volumes."""
        center = self.catalog.data_centers.get(body.data_center)
        if center is None:
            raise ProblemError(400, f"There is no data center {body.data_center}.")
        kinds = center.volume_types
        if not kinds or body.type not in {None, *kinds}:
            raise ProblemError(400, f"{center.id} has no network volumes{f' of type {body.type}' if kinds else ''}.")
        return self._keep(self.volumes, {"type": kinds[0], **body.given()})

    def update_volume(self, volume_id: str, body: UpdateVolume) -> Resource:
        """Rename or enlarge a volume."""
        volume = find(self.volumes, volume_id, "network volume")
        if body.size is not None and body.size < volume["size"]:
            raise ProblemError(400, f"The size can't be reduced: the volume has {volume['size']} GB.")
        volume.update(body.given())
        return volume

    def delete_volume(self, volume_id: str) -> None:
        """Delete a volume with its data, unless an endpoint still has it."""
        find(self.volumes, volume_id, "network volume")
        if self.endpoints.has_volume(volume_id):
            raise ProblemError(400, "The network volume is attached to an endpoint: remove it there first.")
        del self.volumes[volume_id]
        self.volume_deleted(volume_id)

    # Registries

    def create_registry(self, body: CreateRegistry) -> Resource:
        """Store the credentials of a container registry, of which only the name can be read again."""
        return self._keep(self.registries, {"name": body.name})

    def delete_registry(self, registry_id: str) -> None:
        """Delete credentials. Templates lose the reference; a worker's endpoint keeps them from being deleted."""
        find(self.registries, registry_id, "registry")
        if self.endpoints.has_registry(registry_id):
            raise ProblemError(400, "The registry is in use by an endpoint.")
        del self.registries[registry_id]
        for template in self.templates.values():
            if template["registry"] == registry_id:
                template["registry"] = None

    # Templates

    def create_template(self, body: CreateTemplate) -> Resource:
        """Create a template."""
        template = {
            "args": "",
            "disk": 20,
            "mounts": {},
            "ports": [],
            "env": {},
            "registry": None,
            "serverless": False,
            "public": False,
            "category": "NVIDIA",
            "startSsh": True,
            "startJupyter": True,
            "allowedCudaVersions": [],
            **body.given(),
        }
        self._check_template(template)
        return self._keep(self.templates, template)

    def update_template(self, template_id: str, body: UpdateTemplate) -> Resource:
        """Change a template. Endpoints that were made from it don't change."""
        template = find(self.templates, template_id, "template")
        given = body.given()
        if not given.get("mounts"):
            given.pop("mounts", None)
        self._check_template({**template, **given})
        template.update(given)
        return template

    def delete_template(self, template_id: str) -> None:
        """Delete a template, unless an endpoint was made from it."""
        find(self.templates, template_id, "template")
        if self.endpoints.bound_to(template_id) is not None:
            raise ProblemError(400, "The template is in use by a serverless endpoint and can't be deleted.")
        del self.templates[template_id]

    # Endpoints

    def create_endpoint(self, body: CreateEndpoint) -> Resource:
        """Create an endpoint, from a template or without one. A template can be bound to one endpoint only."""
        template = self._serverless_template(body.template_id)
        if body.template_id is not None and self.endpoints.bound_to(body.template_id) is not None:
            raise ProblemError(400, "The template is bound to another endpoint.")
        self._check_references(body)
        return self.endpoints.create(new_id(14), body, template, as_time(self._clock()))

    def update_endpoint(self, endpoint_id: str, body: UpdateEndpoint) -> Resource:
        """Change an endpoint. A template given here is applied once, and not bound."""
        self.endpoints.get(endpoint_id)
        template = self._serverless_template(body.template_id)
        self._check_references(body)
        return self.endpoints.update(endpoint_id, body, template, as_time(self._clock()))

    def delete_endpoint(self, endpoint_id: str) -> None:
        """Delete an endpoint, and the template that is bound to it."""
        template_id = self.endpoints.delete(endpoint_id)
        if template_id is not None:
            self.templates.pop(template_id, None)

    def _check_template(self, template: Resource) -> None:
        if template["serverless"] and template["mounts"]:
            raise ProblemError(400, "A serverless template must have no mounts.")
        self._check_container(template)

    def _check_container(self, given: Resource) -> None:
        if len(given.get("env") or ()) > _MOST_VARIABLES:
            raise ProblemError(400, f"More than {_MOST_VARIABLES} environment variables.")
        if given.get("registry") is not None and given["registry"] not in self.registries:
            raise ProblemError(400, "There is no such registry.")

    def _check_references(self, body: CreateEndpoint | UpdateEndpoint) -> None:
        self._check_container(body.given())
        for volume_id in body.network_volumes or ():
            if volume_id not in self.volumes:
                raise ProblemError(400, f"There is no network volume {volume_id}.")
        for center in body.data_center_ids or ():
            if center not in self.catalog.data_centers:
                raise ProblemError(400, f"There is no data center {center}.")

    def _serverless_template(self, template_id: str | None) -> Resource | None:
        if template_id is None:
            return None
        template = find(self.templates, template_id, "template")
        if not template["serverless"]:
            raise ProblemError(422, "The template is not a serverless template.")
        return template

    def _keep(self, resources: dict[str, Resource], fields: Resource) -> Resource:
        resource = {"id": new_id(10), **fields}
        resources[resource["id"]] = resource
        return resource


def find(resources: dict[str, Resource], resource_id: str, kind: str) -> Resource:
    """Return a resource.

    Raises:
        ProblemError: there is none with this id.
    """
    try:
        return resources[resource_id]
    except KeyError:
        raise ProblemError(404, f"There is no {kind} with this id.") from None


def as_time(seconds: float) -> str:
    """Return Unix seconds as the API writes times."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_id(length: int) -> str:
    """Return a new id of small letters and digits."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(length))
