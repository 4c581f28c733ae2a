"""The endpoints, looked at once a minute: whether their workers get ready, and whether GPUs work for nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import structlog

from lora_worker.duties.duty import RoundResult, no_sign
from lora_worker.errors import ServiceUnavailableError
from lora_worker.launchers.base import EndpointHealth, EndpointState
from lora_worker.launchers.endpoints import EndpointView, launches_at, starting_too_long, unowned_work
from lora_worker.observability.actions import Action
from lora_worker.observability.metrics import ENDPOINT_QUEUE, ENDPOINT_REACHABLE, ENDPOINT_STATES, ENDPOINT_WORKERS
from lora_worker.runs.applying import apply
from lora_worker.runs.state.events import EndpointSeen
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.services import Services

log = structlog.get_logger(__name__)


def _show(seen: EndpointHealth) -> None:
    """Set the gauges of today's endpoint."""
    ENDPOINT_REACHABLE.set(seen.reachable)
    ENDPOINT_QUEUE.set(seen.jobs_queued)
    for state in ENDPOINT_STATES:
        ENDPOINT_WORKERS.labels(state).set(getattr(seen, state))


class EndpointWatch:
    """Looks at the endpoint of the settings, and at those where held runs wait for their GPU."""

    def __init__(self, services: Services, runs: Mapping[UUID, HeldRun], *, beat: Callable[[], None] = no_sign) -> None:
        self._services = services
        self._beat = beat
        self._runs = runs
        self._unowned: str | None = None

    @property
    def interval_seconds(self) -> float:
        """Seconds between two looks: short enough for the limit of how long workers may start."""
        longest: float = self._services.settings.max_start_seconds / 4
        return min(60.0, longest)

    async def run_once(self) -> RoundResult:
        """Look at each endpoint once, and tell the runs, the database and the log what is wrong.

        Raises:
            ServiceError: the database did not answer; or the endpoint's workers never get ready, for /readyz.
        """
        launcher = self._services.launcher
        waiting = [held for held in self._runs.values() if not held.has_checked_in]
        known = await self._services.queue.health()
        never_ready = unreachable = None
        endpoints = {launcher.endpoint, *(held.launch_ref.endpoint or launcher.endpoint for held in waiting)}
        for endpoint in endpoints:
            self._beat()
            seen = await launcher.health(endpoint)
            if endpoint == launcher.endpoint:
                _show(seen)
                unreachable = None if seen.reachable else seen.problem
            view = await self._note(endpoint, seen, known)
            for held in waiting:
                if (held.launch_ref.endpoint or launcher.endpoint) == endpoint:
                    apply(held, EndpointSeen(view))
            if endpoint == launcher.endpoint and seen.state is EndpointState.STARTING:
                never_ready = view.problem
        if never_ready:
            raise ServiceUnavailableError(launcher.guide.title, never_ready)
        return RoundResult(len(endpoints), put_off=(unreachable,) if unreachable else ())

    async def _note(self, endpoint: str, seen: EndpointHealth, known: Mapping[str, Any]) -> EndpointView:
        launcher, settings = self._services.launcher, self._services.settings
        problem = seen.problem
        unowned = None
        if endpoint == launcher.endpoint:
            unowned = unowned_work(seen, launches_at(endpoint, known), launcher.guide)
            # For a moment a launch that has just ended is a GPU without a run: so only what is seen twice is told.
            unowned, self._unowned = (unowned if self._unowned else None), unowned
        seconds = await self._services.queue.note_endpoint(
            launcher=launcher.name, endpoint=endpoint, state=str(seen.state), problem=problem or unowned
        )
        late = starting_too_long(seconds, settings.max_start_seconds, launcher.guide)
        problems = "; ".join(filter(None, (problem, late, unowned)))
        if not problems:
            self._services.repeats.clear(("endpoint", endpoint))
        elif self._services.repeats.is_due(("endpoint", endpoint), f"{problem} {late is not None} {unowned}"):
            log.warning("endpoint", action=Action.ENDPOINT_PROBLEM, endpoint=endpoint, problem=problems)
        return EndpointView(problem or late, seconds)
