"""The clients, clocks and settings that all parts of the worker use. They are created once per process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import httpx

from lora_contract.tracing import Traces
from lora_worker.configuration.retry_limits import RetryLimits
from lora_worker.configuration.settings import Settings
from lora_worker.configuration.tokens import RunTokens
from lora_worker.database.calls import DatabaseCalls
from lora_worker.deployment.answering import Answering, open_answering
from lora_worker.deployment.worker_logs import open_container_logs
from lora_worker.launchers.base import ContainerLogs, Launcher
from lora_worker.launchers.departures import Departures
from lora_worker.launchers.places import DEFAULT_PLACE, Place, Places
from lora_worker.launchers.registry import most_connections, open_places, read_routes
from lora_worker.launchers.routing_table import RoutingTable
from lora_worker.money.places import check_table, terms_of_places
from lora_worker.money.pricing import GpuPrice, load_prices
from lora_worker.money.terms import Terms, make_terms
from lora_worker.observability.calls import MeasuredClient
from lora_worker.observability.outbox import Outbox
from lora_worker.observability.repeats import Repeats
from lora_worker.observability.telemetry import secrets_of
from lora_worker.storage.buckets import ArtifactsBucket
from lora_worker.storage.evaluations import Evaluations
from lora_worker.storage.objects import Storage
from lora_worker.storage.run_logs import RunLogs

_HEAVY_SLOTS = 4
"""How many datasets and adapters are read at the same time."""
_FOREIGN_SLOTS = 2
"""How many files of an earlier trainer are fetched from other hosts at the same time."""
_LOG_SLOTS = 4
"""Of how many ended runs the containers' logs are read at the same time: the launcher allows few calls."""


def lease_clock() -> float:
    """Return seconds of a clock that also advances while the process is stopped or the machine sleeps.

    A lease expires during that time, too. Where the system has no such clock, a plain monotonic one is used.
    """
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class HeavySlots:
    """Limits how many datasets and adapters are read at once, so that enough connections stay free for other calls.

    Polls and lease renewals must not wait for long downloads. If a dataset or adapter was being read when several
    workers died, it may have killed them. It is then read with `alone=True`, while nothing else is read: if this worker
    dies as well, no other run can be the cause.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._slots = asyncio.Semaphore(count)
        # Tasks get slots in the order in which they asked. Without this lock, a task that needs all slots could wait
        # forever, because others would take each slot that becomes free.
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def take(self, *, alone: bool = False) -> AsyncIterator[None]:
        """Hold one slot, or with `alone` all of them, until the context ends."""
        taken = 0
        try:
            async with self._turn:
                for _ in range(self._count if alone else 1):
                    await self._slots.acquire()
                    taken += 1
            yield
        finally:
            for _ in range(taken):
                self._slots.release()


@dataclass(frozen=True)
class Services:
    """The clients, clocks and settings of one process."""

    settings: Settings
    queue: DatabaseCalls
    storage: Storage
    launcher: Launcher
    """The default place's: errands, the doctor and what has no run of its own go there."""
    http: httpx.AsyncClient
    prices: tuple[GpuPrice, ...]
    retry_limits: RetryLimits
    heavy_slots: HeavySlots
    traces: Traces = field(default_factory=Traces)
    outbox: Outbox = field(default_factory=Outbox)
    foreign_slots: HeavySlots = field(default_factory=lambda: HeavySlots(_FOREIGN_SLOTS))
    log_slots: HeavySlots = field(default_factory=lambda: HeavySlots(_LOG_SLOTS))
    container_logs: Mapping[str, ContainerLogs] = field(default_factory=dict)
    """Where the logs of containers are read, by the launcher's name; a launcher may also read its own."""
    routed_places: tuple[Place, ...] = ()
    """Where launches go, the default place first; empty: there is one place, the launcher's."""
    routes: RoutingTable | None = None
    """Which job goes where; None where there is one place."""
    answering: Answering | None = None
    """The endpoint that answers with finished adapters; None where the settings name none."""
    clock: Callable[[], float] = lease_clock
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    @cached_property
    def places(self) -> Places:
        """Where runs are launched, looked at and cancelled."""
        if self.routed_places:
            return Places(*self.routed_places)
        settings = self.settings
        default = Place(
            DEFAULT_PLACE, self.launcher, settings.endpoint_gpu_type, settings.endpoint_gpu_count, serves=True
        )
        return Places(default)

    def container_logs_at(self, endpoint: str | None) -> ContainerLogs | None:
        """What reads the logs of an endpoint's containers; None where that is not possible."""
        launcher = self.places.launcher_at(endpoint)
        if launcher is None or isinstance(launcher, ContainerLogs):
            return launcher
        return self.container_logs.get(launcher.name)

    @cached_property
    def repeats(self) -> Repeats:
        """The conditions that were logged and still last, so that they are not logged at every poll."""
        return Repeats(self.clock)

    @cached_property
    def departures(self) -> Departures:
        """The runs that have left for a place lately."""
        return Departures(self.clock)

    @cached_property
    def terms(self) -> Terms:
        """The prices, speeds and limits with which costs are estimated."""
        terms = make_terms(self.settings, self.prices, gpu_count=max(place.gpu_count for place in self.places.all))
        return terms_of_places(terms, self.places, self.prices) if self.routed_places else terms

    @cached_property
    def tokens(self) -> RunTokens:
        """The tokens of the runs."""
        settings = self.settings
        # New tokens are derived from the first secret. The service key is always among the others: runs that were
        # launched before a token secret was set have tokens that were derived from it.
        key = settings.supabase_service_role_key
        secrets = [settings.token_secret or key, *settings.previous_token_secrets, key]
        return RunTokens([secret.get_secret_value() for secret in secrets if secret])

    @cached_property
    def logs(self) -> RunLogs:
        """The kept logs of runs."""
        return RunLogs(self.storage, self.settings.artifacts_bucket, tuple(secrets_of(self.settings)))

    @cached_property
    def evaluations(self) -> Evaluations:
        """The answers side by side of finished runs."""
        return Evaluations(self.storage, self.settings.artifacts_bucket)

    @cached_property
    def artifacts_bucket(self) -> ArtifactsBucket:
        """The bucket for adapters, which is checked before the first launch."""
        return ArtifactsBucket(self.storage, self.settings.artifacts_bucket)


@asynccontextmanager
async def open_services(settings: Settings, **overrides: Any) -> AsyncIterator[Services]:
    """Create the services; their connections are closed when the context ends. `overrides` replace single services.

    Where they bring the launcher, it has the only place, and no endpoint of the settings is opened.

    `settings` are of the launcher's own class, as `load_settings` makes them.

    Raises:
        SettingsError: the price table or the routing table can't be read, or an endpoint can't be used.
    """
    timeout = httpx.Timeout(settings.request_timeout_seconds, connect=10)
    # Each launcher gets as many connections as it may use at once. The others are for calls to Supabase.
    limits = httpx.Limits(max_connections=most_connections(settings) + _HEAVY_SLOTS * 2 + 40)
    key = settings.supabase_service_role_key.get_secret_value()
    async with MeasuredClient(timeout=timeout, limits=limits) as http:
        prices = load_prices(settings.price_table)
        places, routes = ((), None) if "launcher" in overrides else (open_places(settings, http), read_routes(settings))
        if routes:
            check_table(settings, routes, Places(*places), prices)
        made: dict[str, Any] = {
            "settings": settings,
            "queue": DatabaseCalls(
                settings.supabase_url, key, worker=settings.name, lease_seconds=settings.lease_seconds, http=http
            ),
            "storage": Storage(settings.supabase_url, key, http=http),
            "launcher": places[0].launcher if places else None,
            "routed_places": places if routes else (),
            "routes": routes,
            "container_logs": open_container_logs(settings, http),
            "answering": open_answering(settings, http),
            "http": http,
            "prices": prices,
            "retry_limits": RetryLimits(
                max_attempts=settings.max_attempts,
                max_infrastructure_failures=settings.max_infrastructure_failures,
                base_seconds=settings.retry_base_seconds,
                max_seconds=settings.retry_max_seconds,
            ),
            "heavy_slots": HeavySlots(_HEAVY_SLOTS),
        }
        yield Services(**{**made, **overrides})
