"""The endpoints, looked at once a minute: whether their workers get ready, and whether GPUs work for nobody."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import UUID

import structlog

from lora_worker.database.answers import EndpointAnswer
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


def _show(places: Iterable[EndpointHealth]) -> None:
    """Set the gauges, which are of all places together."""
    seen = list(places)
    ENDPOINT_REACHABLE.set(all(each.reachable for each in seen))
    ENDPOINT_QUEUE.set(sum(each.jobs_queued for each in seen))
    for state in ENDPOINT_STATES:
        ENDPOINT_WORKERS.labels(state).set(sum(getattr(each, state) for each in seen))


class EndpointWatch:
    """Looks at the endpoints of all places, and at those where held runs wait for their GPU."""

    def __init__(self, services: Services, runs: Mapping[UUID, HeldRun], *, beat: Callable[[], None] = no_sign) -> None:
        self._services = services
        self._beat = beat
        self._runs = runs
        self._unowned: dict[str, str | None] = {}

    @property
    def interval_seconds(self) -> float:
        """Seconds between two looks: short enough for the limits of how long workers may start or lack a GPU."""
        services = self._services
        fall_back_seconds = services.routes.fall_back_minutes * 60 if services.routes else math.inf
        return min(60.0, services.settings.max_start_seconds / 4, fall_back_seconds / 4)

    async def run_once(self) -> RoundResult:
        """Look at each endpoint once, and tell the runs, the database and the log what is wrong.

        Raises:
            ServiceError: the database did not answer; or at no place do workers get ready, for /readyz.
        """
        places = self._services.places
        known = await self._services.queue.health()
        waiting: dict[str, list[HeldRun]] = {place.endpoint: [] for place in places.all}
        for held in self._runs.values():
            if not held.has_checked_in:
                waiting.setdefault(held.launch_ref.endpoint or places.default.endpoint, []).append(held)
        seen: dict[str, EndpointHealth] = {}
        views: dict[str, EndpointView] = {}
        for endpoint, runs in waiting.items():
            self._beat()
            seen[endpoint] = await places.health(endpoint)
            views[endpoint] = await self._note(endpoint, seen[endpoint], known)
            for held in runs:
                apply(held, EndpointSeen(views[endpoint]))
        ours = [seen[place.endpoint] for place in places.all]
        _show(ours)
        late = [views[each.endpoint].problem for each in places.all]
        if all(late) and all(each.state is EndpointState.STARTING for each in ours):
            raise ServiceUnavailableError(places.default.launcher.guide.title, "; ".join(filter(None, late)))
        unreachable = (each.problem for each in ours if not each.reachable)
        return RoundResult(len(waiting), put_off=tuple(filter(None, unreachable)))

    async def _note(self, endpoint: str, seen: EndpointHealth, known: Mapping[str, Any]) -> EndpointView:
        places, settings = self._services.places, self._services.settings
        place, launcher = places.at(endpoint), places.launcher_at(endpoint)
        guide, problem, unowned = places.guide_of(endpoint), seen.problem, None
        if place is not None:
            found = unowned_work(seen, launches_at(endpoint, known), guide)
            # For a moment a launch that has just ended is a GPU without a run: so only what is seen twice is told.
            unowned, self._unowned[endpoint] = (found if self._unowned.get(endpoint) else None), found
        noted: EndpointAnswer = {"starting_seconds": 0.0, "without_gpu_seconds": 0.0}
        if launcher is not None:
            noted = await self._services.queue.note_endpoint(
                launcher=launcher.name,
                endpoint=endpoint,
                state=str(seen.state),
                problem=problem or unowned,
                without_gpu=seen.lacks_gpu,
            )
        # Else another worker may reach it: what it has noted there counts, and not that this one has no key for it.
        seconds = noted["starting_seconds"]
        late = starting_too_long(seconds, settings.max_start_seconds, guide)
        problems = "; ".join(filter(None, (problem, late, unowned)))
        if not problems:
            self._services.repeats.clear(("endpoint", endpoint))
        elif self._services.repeats.is_due(("endpoint", endpoint), f"{problem} {late is not None} {unowned}"):
            log.warning("endpoint", action=Action.ENDPOINT_PROBLEM, endpoint=endpoint, problem=problems)
        return EndpointView(problem or late, seconds, noted["without_gpu_seconds"])
