"""The configuration of the endpoints: how a call changes it, and which releases that makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sandbox.runpod.rest.catalog import Catalog
from sandbox.runpod.rest.problems import ProblemError
from sandbox.runpod.rest.requests import CreateEndpoint, UpdateEndpoint

_CONTAINER: dict[str, Any] = {"image": "", "args": "", "disk": 20, "ports": [], "env": {}, "registry": None}
_OF_A_RELEASE = (*_CONTAINER, "gpu", "cpu", "dataCenterIds", "networkVolumes")
"""A change of these fields makes a release: workers that run already keep the former one until they are replaced."""
_TIMEOUT_MS = 300_000
_SHORTEST_TIMEOUT_MS, _LONGEST_TIMEOUT_MS = 5_000, 7 * 24 * 3_600_000
_GB_PER_VCPU = 4


@dataclass
class Configuration:
    """An endpoint as the API shows it, the template that is bound to it, and its releases (newest first)."""

    shown: dict[str, Any]
    template_id: str | None
    version: int = 1
    releases: list[dict[str, Any]] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The endpoint's id."""
        return str(self.shown["id"])


class Endpoints:
    """The configuration of all endpoints. `changed` is called with the id of an endpoint after each change."""

    def __init__(self, catalog: Catalog, jobs_url: str) -> None:
        self._catalog = catalog
        self._jobs_url = jobs_url
        self._all: dict[str, Configuration] = {}
        self.changed: Callable[[str], None] = lambda _: None

    def get(self, endpoint_id: str) -> Configuration:
        """Return an endpoint's configuration.

        Raises:
            ProblemError: there is no such endpoint.
        """
        try:
            return self._all[endpoint_id]
        except KeyError:
            raise ProblemError(404, "There is no endpoint with this id.") from None

    def all(self) -> list[Configuration]:
        """Return all configurations, oldest first."""
        return list(self._all.values())

    def has_volume(self, volume_id: str) -> bool:
        """Tell whether an endpoint has the network volume."""
        return any(volume_id in one.shown["networkVolumes"] for one in self.all())

    def has_registry(self, registry_id: str) -> bool:
        """Tell whether an endpoint's image is pulled with these credentials."""
        return any(one.shown["registry"] == registry_id for one in self.all())

    def bound_to(self, template_id: str) -> Configuration | None:
        """Return the endpoint to which the template is bound, if there is one."""
        return next((one for one in self.all() if one.template_id == template_id), None)

    def create(
        self, endpoint_id: str, body: CreateEndpoint, template: dict[str, Any] | None, created: str
    ) -> dict[str, Any]:
        """Create an endpoint and return it as the API shows it."""
        given = body.given()
        if (body.gpu is None) == (body.cpu is None):
            raise ProblemError(400, "Exactly one of gpu and cpu is required.")
        shown = {
            "id": endpoint_id,
            "name": body.name,
            "type": body.type,
            "requestUrls": _request_urls(self._jobs_url, endpoint_id, body.type),
            **_container(_CONTAINER, given, template),
            "workers": {"min": 0, "max": 3, **given.get("workers", {})},
            "scaling": given["scaling"],
            "dataCenterIds": given.get("dataCenterIds", []),
            "networkVolumes": given.get("networkVolumes", []),
            "timeout": given.get("timeout", _TIMEOUT_MS),
            "flashboot": given.get("flashboot", "OFF"),
            "createdAt": created,
        }
        if body.cpu is not None:
            shown["cpu"] = _cpus(given)
        else:
            versions = template["allowedCudaVersions"] if template and "minCudaVersion" not in given["gpu"] else []
            shown["gpu"] = {"count": 1, "allowedCudaVersions": [*versions], "minCudaVersion": None, **given["gpu"]}
        self._settle(shown, given)
        self._all[endpoint_id] = Configuration(shown, body.template_id)
        self._release(self._all[endpoint_id], {}, created)
        self.changed(endpoint_id)
        return shown

    def update(
        self, endpoint_id: str, body: UpdateEndpoint, template: dict[str, Any] | None, now: str
    ) -> dict[str, Any]:
        """Change an endpoint and return it as the API shows it."""
        configuration = self.get(endpoint_id)
        given, before = body.given(), configuration.shown
        if (body.gpu is not None and "cpu" in before) or (body.cpu is not None and "gpu" in before):
            raise ProblemError(400, "An endpoint can't change between GPU and CPU.")
        plain = ("name", "scaling", "dataCenterIds", "networkVolumes", "timeout", "flashboot")
        shown = {
            **before,
            **{name: given[name] for name in plain if name in given},
            **_container(before, given, template),
            "workers": {**before["workers"], **given.get("workers", {})},
        }
        if body.cpu is not None:
            shown["cpu"] = _cpus(given)
        if body.gpu is not None:
            shown["gpu"] = _changed_gpu(before["gpu"], given["gpu"])
        self._settle(shown, given)
        configuration.shown = shown
        if any(shown.get(name) != before.get(name) for name in _OF_A_RELEASE):
            configuration.version += 1
            self._release(configuration, before, now)
        self.changed(endpoint_id)
        return shown

    def delete(self, endpoint_id: str) -> str | None:
        """Delete an endpoint; returns the template that was bound to it."""
        template_id = self.get(endpoint_id).template_id
        del self._all[endpoint_id]
        self.changed(endpoint_id)
        return template_id

    def _release(self, configuration: Configuration, before: dict[str, Any], now: str) -> None:
        after = configuration.shown
        differing = [name for name in _OF_A_RELEASE if before.get(name) != after.get(name)] if before else []
        release = {
            "id": f"{configuration.id}-{configuration.version}",
            "version": configuration.version,
            "source": "MANUAL",
            "buildId": None,
            "createdByUserId": None,
            "createdAt": now,
            "diff": [{"field": name, "old": before.get(name), "new": after.get(name)} for name in differing],
        }
        configuration.releases.insert(0, release)

    def _settle(self, shown: dict[str, Any], given: dict[str, Any]) -> None:
        """Apply the rules between the fields, and add what follows from them."""
        _settle_workers(shown, given)
        if not _SHORTEST_TIMEOUT_MS <= shown["timeout"] <= _LONGEST_TIMEOUT_MS:
            raise ProblemError(400, f"timeout must be from {_SHORTEST_TIMEOUT_MS} to {_LONGEST_TIMEOUT_MS} ms.")
        if "gpu" in shown:
            self._check_gpu(shown["gpu"])

    def _check_gpu(self, gpu: dict[str, Any]) -> None:
        for pool in gpu["pools"]:
            if not self._catalog.types_in([pool]):
                raise ProblemError(400, f"There is no GPU pool {pool}.")
        types = {kind.id for kind in self._catalog.types_in(gpu["pools"])}
        excluded = [name.strip() for name in gpu.get("excludedTypes", [])]
        for name in excluded:
            if name not in types:
                raise ProblemError(400, f"{name} is not a GPU type of the pools.")
        if not types - set(excluded):
            raise ProblemError(400, "excludedTypes leaves no GPU type.")
        if excluded:
            gpu["excludedTypes"] = excluded
        if gpu["allowedCudaVersions"] and gpu["minCudaVersion"]:
            raise ProblemError(400, "allowedCudaVersions and minCudaVersion exclude each other.")


def _container(before: dict[str, Any], given: dict[str, Any], template: dict[str, Any] | None) -> dict[str, Any]:
    container = {name: before[name] for name in _CONTAINER}
    if template is not None:
        container |= {name: template[name] for name in _CONTAINER}
    container |= {name: given[name] for name in _CONTAINER if name in given}
    if template is not None and "env" in given:
        container["env"] = {**template["env"], **given["env"]}
    return container


def _settle_workers(shown: dict[str, Any], given: dict[str, Any]) -> None:
    workers = shown["workers"]
    if workers["min"] > workers["max"]:
        raise ProblemError(400, "workers.min is above workers.max.")
    by_requests = shown["scaling"]["type"] == "REQUEST_COUNT"
    if shown["type"] == "LOAD_BALANCER" and not by_requests:
        raise ProblemError(400, "A LOAD_BALANCER endpoint scales by REQUEST_COUNT.")
    if shown["type"] == "QUEUE" and by_requests:
        if "idleTimeout" in given.get("workers", {}):
            raise ProblemError(
                400, "workers.idleTimeout does not apply to a QUEUE endpoint that scales by requestCount."
            )
        workers.pop("idleTimeout", None)
    else:
        workers.setdefault("idleTimeout", 10)


def _changed_gpu(before: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    # A selection is replaced as a whole: pools without excludedTypes remove the exclusions.
    kept = {name: value for name, value in before.items() if "pools" not in given or name != "excludedTypes"}
    gpu = {**kept, **given}
    gpu["minCudaVersion"] = gpu["minCudaVersion"] or None
    return gpu


def _cpus(given: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**cpu, "memory": _GB_PER_VCPU * cpu["vcpuCount"]} for cpu in given["cpu"]]


def _request_urls(jobs_url: str, endpoint_id: str, kind: str) -> dict[str, str]:
    base = f"{jobs_url}/{endpoint_id}"
    if kind == "LOAD_BALANCER":
        return {"base": base, "health": f"{base}/ping"}
    urls = {"run": "run", "runSync": "runsync", "purgeQueue": "purge-queue", "health": "health"}
    urls |= {name: f"{name}/{{job_id}}" for name in ("status", "stream", "cancel", "retry")}
    return {name: f"{base}/{path}" for name, path in urls.items()}
