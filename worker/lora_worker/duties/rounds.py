"""How the daemon's rounds repeat, what their failures mean, and how a stop breaks them off."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from lora_worker.errors import SchemaMismatchError, SchemaMissingError, ServiceError
from lora_worker.observability.readiness import Readiness
from lora_worker.observability.repeats import Repeats, place_of
from lora_worker.observability.telemetry import FAULTS_SEEN

log = structlog.get_logger(__name__)

_LONG_ROUNDS = frozenset({"validate"})
"""Rounds that read whole files take as long as those are."""

_FAILED = "a round failed; see the log"


class Rounds:
    """Repeats rounds until `stop` is set; what each came to is told to `readiness`."""

    def __init__(self, stop: asyncio.Event, readiness: Readiness, repeats: Repeats, rng: random.Random) -> None:
        self._stop = stop
        self._readiness = readiness
        self._repeats = repeats
        self._rng = rng

    async def once(self, name: str, round_: Callable[[], Awaitable[None]]) -> None:
        """Do one round; a service that did not answer, or a fault of ours, is noted and logged.

        Raises:
            SchemaMismatchError: the database moved to a version that this worker does not know.
        """
        if name not in _LONG_ROUNDS:
            self._readiness.begin(name)
        try:
            await round_()
            self.well(name)
        except SchemaMissingError as error:
            self.note(name, error)
        except SchemaMismatchError:
            raise
        except ServiceError as error:
            self.note(name, error)
        except Exception as error:
            self._readiness.end(name, _FAILED)
            if self._repeats.is_due(("round", name), place_of(error)):
                log.exception("a round failed", round=name)

    async def repeat(self, name: str, round_: Callable[[], Awaitable[None]], seconds: float) -> None:
        """Do a round, and again every so many seconds, until the stop. Raises as `once` does."""
        while not self._stop.is_set():
            await self.once(name, round_)
            # Jitter keeps a fleet's rounds apart.
            await self.pause(seconds * self._rng.uniform(0.9, 1.1))

    async def pause(self, seconds: float) -> None:
        """Wait, or until the stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), timeout=seconds)

    async def unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this, or break it off at a stop: nothing has been begun yet that should be finished."""
        task, stopping = asyncio.create_task(work), asyncio.create_task(self._stop.wait())
        await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
        for late in (task, stopping):
            late.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def note(self, name: str, error: ServiceError) -> None:
        """Note that a service failed in a round."""
        FAULTS_SEEN.labels(error.service).inc()
        self._readiness.end(name, str(error))
        if self._repeats.is_due(("round", name), str(error)):
            log.warning("service fault", service=error.service, problem=str(error))

    def well(self, name: str) -> None:
        """Note that a round went well; where it had failed several times, the log says how often."""
        self._readiness.end(name)
        times = self._repeats.clear(("round", name))
        if times > 1:
            log.info("fault over", round=name, times=times)
