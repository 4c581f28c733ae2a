"""What the work on a run needs from outside, made once for a process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import httpx

from lora_worker.configuration.retry_limits import RetryLimits
from lora_worker.configuration.settings import Settings
from lora_worker.configuration.tokens import RunTokens
from lora_worker.database.queue import Queue
from lora_worker.launchers.base import Launcher
from lora_worker.launchers.runpod import MOST_CANCELS, RunPodLauncher
from lora_worker.money.pricing import GpuPrice, load_prices
from lora_worker.money.terms import Terms, make_terms
from lora_worker.observability.repeats import Repeats
from lora_worker.storage.buckets import ArtifactsBucket
from lora_worker.storage.objects import Storage

_HEAVY_SLOTS = 4
_FOREIGN_SLOTS = 2


def lease_clock() -> float:
    """Seconds that go on while the process is stopped and while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class HeavySlots:
    """Places for reading whole datasets and adapters, which must not crowd out polls and renewals.

    What has ended several workers is read alone: if it ends this one too, no other run is suspected.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._slots = asyncio.Semaphore(count)
        # First come, first served: without it whoever wants all places would wait for ever.
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def take(self, *, alone: bool = False) -> AsyncIterator[None]:
        """Hold one place, or all of them."""
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
    """Settings, clocks and clients."""

    settings: Settings
    queue: Queue
    storage: Storage
    launcher: Launcher
    http: httpx.AsyncClient
    prices: tuple[GpuPrice, ...]
    retry_limits: RetryLimits
    heavy_slots: HeavySlots
    foreign_slots: HeavySlots = field(default_factory=lambda: HeavySlots(_FOREIGN_SLOTS))
    clock: Callable[[], float] = lease_clock
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    @cached_property
    def repeats(self) -> Repeats:
        """What was logged and goes on."""
        return Repeats(self.clock)

    @cached_property
    def terms(self) -> Terms:
        """What estimates stand on."""
        return make_terms(self.settings, self.prices)

    @cached_property
    def tokens(self) -> RunTokens:
        """The runs' tokens."""
        settings = self.settings
        # New tokens are made with the first. The service's key is also read where a secret is set: runs may be live
        # from before it was.
        key = settings.supabase_service_role_key
        secrets = [settings.token_secret or key, *settings.previous_token_secrets, key]
        return RunTokens([secret.get_secret_value() for secret in secrets if secret])

    @cached_property
    def artifacts_bucket(self) -> ArtifactsBucket:
        """Where adapters go, looked at before the first launch."""
        return ArtifactsBucket(self.storage, self.settings.artifacts_bucket)


@asynccontextmanager
async def open_services(settings: Settings, **overrides: Any) -> AsyncIterator[Services]:
    """The services with their connection pool, closed on leaving."""
    timeout = httpx.Timeout(settings.request_timeout_seconds, connect=10)
    # Looks and launches may fill their bounds at the same time; the rest is Supabase's, and the fewer calls.
    limits = httpx.Limits(max_connections=2 * settings.launcher_concurrency + MOST_CANCELS + _HEAVY_SLOTS * 2 + 40)
    key = settings.supabase_service_role_key.get_secret_value()
    async with httpx.AsyncClient(timeout=timeout, limits=limits) as http:
        made: dict[str, Any] = {
            "settings": settings,
            "queue": Queue(
                settings.supabase_url, key, worker=settings.name, lease_seconds=settings.lease_seconds, http=http
            ),
            "storage": Storage(settings.supabase_url, key, http=http),
            "launcher": RunPodLauncher(
                settings.gpu_cluster_api_url,
                settings.gpu_cluster_api_key.get_secret_value(),
                http=http,
                concurrency=settings.launcher_concurrency,
                former_endpoints=settings.former_endpoints,
            ),
            "http": http,
            "prices": load_prices(settings.price_table),
            "retry_limits": RetryLimits(
                max_attempts=settings.max_attempts,
                max_infrastructure_failures=settings.max_infrastructure_failures,
                base_seconds=settings.retry_base_seconds,
                max_seconds=settings.retry_max_seconds,
            ),
            "heavy_slots": HeavySlots(_HEAVY_SLOTS),
        }
        yield Services(**{**made, **overrides})
