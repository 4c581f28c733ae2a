"""The one worker of the endpoint: it starts at a request, ends after its idle time, and is replaced by a release."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sandbox.inference.vllm import VllmServer


@dataclass(frozen=True)
class Time:
    """The clock of the endpoint, in seconds, and how it waits. Tests pass one that they advance."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(frozen=True)
class Scaling:
    """When a worker starts and ends. All in seconds."""

    cold_start_seconds: float = 0.0
    """Until a worker has pulled its image and begins to load the model."""
    idle_seconds: float = 60.0
    edge_seconds: float = 100.0
    """After this time without an answer the network in front of RunPod answers 524, and the job goes on."""


class ScaledWorker:
    """At most one worker. `open_server` starts vLLM, which loads the model."""

    def __init__(self, open_server: Callable[[], Awaitable[VllmServer]], scaling: Scaling, time_: Time) -> None:
        self._open_server = open_server
        self._scaling = scaling
        self._time = time_
        self._server: VllmServer | None = None
        self._starting: asyncio.Task[VllmServer] | None = None
        self._running = 0
        self._queued = 0
        self._idle_since = 0.0

    def counts(self) -> dict[str, dict[str, int]]:
        """What `/health` tells: the jobs and the workers."""
        self._end_idle()
        up = self._server is not None
        workers = {
            "idle": int(up and not self._running),
            "initializing": int(self._starting is not None),
            "ready": int(up),
            "running": int(up and self._running > 0),
            "throttled": 0,
            "unhealthy": 0,
        }
        jobs = {"completed": 0, "failed": 0, "inProgress": self._running, "inQueue": self._queued, "retried": 0}
        return {"jobs": jobs, "workers": workers}

    def release(self) -> None:
        """Replace the worker, as every change of the endpoint's configuration does; the next one knows no adapter."""
        self._server = None

    @asynccontextmanager
    async def job(self) -> AsyncIterator[VllmServer]:
        """Wait in the queue for a worker, and keep it busy until the context ends.

        Raises:
            TimeoutError: no worker was ready before the edge gave up. One goes on starting.
        """
        self._end_idle()
        server = self._server or await self._started()
        self._running += 1
        try:
            yield server
        finally:
            self._running -= 1
            self._idle_since = self._time.now()

    async def _started(self) -> VllmServer:
        starting = self._starting = self._starting or asyncio.create_task(self._start())
        edge = asyncio.ensure_future(self._time.sleep(self._scaling.edge_seconds))
        self._queued += 1
        try:
            await asyncio.wait({starting, edge}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                raise TimeoutError
            return starting.result()
        finally:
            self._queued -= 1
            edge.cancel()

    async def _start(self) -> VllmServer:
        try:
            await self._time.sleep(self._scaling.cold_start_seconds)
            self._server = await self._open_server()
            self._idle_since = self._time.now()
            return self._server
        finally:
            self._starting = None

    def _end_idle(self) -> None:
        idle_seconds = self._time.now() - self._idle_since
        if self._server is not None and not self._running and idle_seconds >= self._scaling.idle_seconds:
            self._server = None
