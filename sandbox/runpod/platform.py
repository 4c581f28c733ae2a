"""All endpoints: each of the account's endpoints gets a queue and workers that follow its configuration.

One endpoint exists from the start, as if somebody had made it in the console; the others are made through the REST API.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.runpod.endpoint import Clock, Endpoint, EndpointSettings
from sandbox.runpod.faults import Faults
from sandbox.runpod.ledger import Execution, Ledger
from sandbox.runpod.pool import Image, Placement, Wire, Worker
from sandbox.runpod.rest.account import Account, as_time
from sandbox.runpod.rest.endpoints import Configuration
from sandbox.runpod.rest.problems import ProblemError
from sandbox.runpod.rest.requests import CreateEndpoint

if TYPE_CHECKING:
    from sandbox.runpod.rest.pods import Pods

_TICK_SECONDS = 0.05
_CONSOLE_IMAGE = "local"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the endpoints need of this machine."""

    folder: Path
    """For the workers' homes and the network volumes."""
    worker_url: str
    """The address of the API for workers."""
    images: Mapping[str, str] | None
    """The handler module of each image that can be pulled; None: every image is the module of the settings."""
    volume_variable: str
    """The environment variable that tells a worker its network volume: nothing can be mounted at /runpod-volume."""


class Platform:
    """The endpoints that take jobs. Only the event loop may use it."""

    def __init__(self, account: Account, settings: EndpointSettings, machine: Machine, clock: Clock) -> None:
        self.account = account
        self.clock = clock
        self.faults = Faults()
        self.ledger = Ledger()
        self._settings = settings
        self._machine = machine
        self._worker_key = secrets.token_hex(20)
        self._endpoints: dict[str, Endpoint] = {}
        self._removed: list[Endpoint] = []
        self.pods: Pods | None = None
        """The account's pods, once there may be some."""
        account.endpoints.changed = self._follow
        account.volume_deleted = lambda volume_id: shutil.rmtree(self.volume_folder(volume_id), ignore_errors=True)
        account.endpoints.create(settings.endpoint, _from_console(settings), None, as_time(clock()))
        self.first = self._endpoints[settings.endpoint]
        # Tests need shorter times than whole seconds.
        self.first.pool.idle_timeout_seconds = settings.idle_timeout_seconds

    def get(self, endpoint_id: str) -> Endpoint | None:
        """Return an endpoint that takes jobs, or None."""
        return self._endpoints.get(endpoint_id)

    def all(self) -> list[Endpoint]:
        """Return all endpoints that take jobs, oldest first."""
        return list(self._endpoints.values())

    def worker(self, worker_id: str) -> tuple[Endpoint, Worker] | None:
        """Return a worker with its endpoint; None if there is no such worker."""
        for endpoint in [*self.all(), *self._removed]:
            worker = endpoint.pool.get(worker_id)
            if worker is not None:
                return endpoint, worker
        return None

    def kill_worker(self, worker_id: str) -> None:
        """Send SIGKILL to all processes of a worker. Does nothing if the worker has ended."""
        found = self.worker(worker_id)
        if found is not None:
            found[0].pool.kill(worker_id)

    def states(self) -> dict[str, str]:
        """Return the state of each worker process, by its id; also of those whose endpoint was just deleted."""
        return {
            worker.id: endpoint.pool.state(worker, endpoint.busy())
            for endpoint in [*self.all(), *self._removed]
            for worker in endpoint.pool.all()
        }

    def orphans(self) -> list[Execution]:
        """Return everything that costs money now or later, of all endpoints."""
        return [orphan for endpoint in self.all() for orphan in endpoint.orphans()]

    def volume_folder(self, volume_id: str) -> Path:
        """Return the folder with the content of a network volume."""
        folder = self._machine.folder / "volumes" / volume_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def apply_time(self) -> None:
        """Do everything that is due at the clock's time."""
        for endpoint in self.all():
            endpoint.jobs.expire()
            endpoint.pool.logs.keep()
            endpoint.react()

    def set_workers(self, *, max_workers: int | None, throttled: bool | None) -> None:
        """Change the first endpoint, as somebody would in the console."""
        if max_workers is not None:
            self.account.endpoints.get(self.first.settings.endpoint).shown["workers"]["max"] = max_workers
        self.first.set_workers(max_workers=max_workers, throttled=throttled)

    async def keep(self) -> None:
        """Keep all endpoints running until this task is cancelled; then end all workers."""
        try:
            while True:
                for endpoint in [*self.all(), *self._removed]:
                    endpoint.keep()
                if self.pods is not None:
                    self.pods.keep()
                self._removed = [endpoint for endpoint in self._removed if not self._is_gone(endpoint)]
                await asyncio.sleep(_TICK_SECONDS)
        finally:
            for endpoint in [*self.all(), *self._removed]:
                endpoint.close()
            if self.pods is not None:
                self.pods.close()

    def _is_gone(self, endpoint: Endpoint) -> bool:
        if endpoint.pool.all():
            return False
        endpoint.close()
        return True

    def _follow(self, endpoint_id: str) -> None:
        """Make an endpoint's queue and workers fit its configuration, which has changed."""
        try:
            configuration = self.account.endpoints.get(endpoint_id)
        except ProblemError:
            if (gone := self._endpoints.pop(endpoint_id, None)) is not None:
                gone.remove()
                self._removed.append(gone)
            return
        shown = configuration.shown
        if shown["type"] != "QUEUE":
            return
        endpoint = self._endpoints.get(endpoint_id) or self._create(configuration)
        endpoint.pool.image = self._image(configuration)
        endpoint.pool.min_workers, endpoint.pool.max_workers = shown["workers"]["min"], shown["workers"]["max"]
        endpoint.pool.idle_timeout_seconds = shown["workers"].get("idleTimeout", self._settings.idle_timeout_seconds)
        endpoint.jobs.execution_timeout_seconds = shown["timeout"] / 1000

    def _create(self, configuration: Configuration) -> Endpoint:
        settings = replace(self._settings, endpoint=configuration.id)
        endpoint = Endpoint(
            settings,
            self._image(configuration),
            Wire(self._machine.worker_url, configuration.id, self._worker_key, settings.ping_interval_seconds),
            self.clock,
            faults=self.faults,
            ledger=self.ledger,
            place=lambda: self._place(configuration),
        )
        self._endpoints[configuration.id] = endpoint
        return endpoint

    def _image(self, configuration: Configuration) -> Image:
        shown, images = configuration.shown, self._machine.images
        module: str | None = self._settings.handler_module
        if images is not None and shown["image"] != _CONSOLE_IMAGE:
            module = images.get(shown["image"])
        return Image(
            module,
            {**self._settings.env, **shown["env"]},
            self._machine.folder,
            name=shown["image"],
            version=configuration.version,
            gpu_count=shown["gpu"]["count"] if "gpu" in shown else 0,
            env_by_center={
                self.account.volumes[volume_id]["dataCenter"]: {
                    "RUNPOD_VOLUME_ID": volume_id,
                    self._machine.volume_variable: str(self.volume_folder(volume_id)),
                }
                for volume_id in shown["networkVolumes"]
            },
        )

    def _place(self, configuration: Configuration) -> Placement | None:
        shown, catalog = configuration.shown, self.account.catalog
        # A network volume is in one data centre, and only workers there can have it.
        centers = [self.account.volumes[volume_id]["dataCenter"] for volume_id in shown["networkVolumes"]]
        centers = centers or shown["dataCenterIds"]
        if "gpu" not in shown:
            return Placement(None, centers[0] if centers else next(iter(catalog.data_centers)))
        excluded = shown["gpu"].get("excludedTypes", [])
        types = [kind.id for kind in catalog.types_in(shown["gpu"]["pools"]) if kind.id not in excluded]
        found = catalog.placement(types, centers)
        return None if found is None else Placement(*found)


def _from_console(settings: EndpointSettings) -> CreateEndpoint:
    """Return the configuration of the endpoint that exists from the start."""
    idle_seconds = min(max(math.ceil(settings.idle_timeout_seconds), 1), 3600)
    return CreateEndpoint.model_validate(
        {
            "name": settings.endpoint,
            "type": "QUEUE",
            "image": _CONSOLE_IMAGE,
            "env": dict(settings.env),
            "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
            "workers": {"min": 0, "max": settings.workers_max, "idleTimeout": idle_seconds},
            "gpu": {"pools": ["AMPERE_24"]},
            "timeout": 600_000,
        }
    )
