"""The endpoints, looked at once a minute: whether their workers get ready, and whether GPUs work for nobody.

An image that ends while it starts is started again and again by RunPod, and its jobs stay in the queue for as long
as their ttl allows; the job API says no more of it than these counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog

from lora_worker.errors import ServiceUnavailableError
from lora_worker.launchers.base import EndpointHealth, EndpointState, LaunchState
from lora_worker.services import Services

if TYPE_CHECKING:
    from lora_worker.runs.held_run import Holding

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EndpointView:
    """How a run's endpoint was seen last."""

    problem: str | None = None
    """A sentence for the operator."""
    starting_seconds: float = 0.0
    """For how long its workers have been starting without one of them getting ready."""

    def keeps_waiting(self, state: LaunchState, *, launch_age_seconds: float, limit_seconds: float) -> bool:
        """Whether a launch has waited its limit for workers that never get ready."""
        waited = min(self.starting_seconds, launch_age_seconds)
        return state is LaunchState.QUEUED and waited >= limit_seconds


def launches_at(endpoint: str, health: Mapping[str, Any]) -> int:
    """How many launches the database knows that may be alive at an endpoint; `health` is the queue's."""
    return sum(row["launches"] for row in health.get("endpoints", ()) if row["endpoint"] in {endpoint, None})


def unowned_work(seen: EndpointHealth, launches: int) -> str | None:
    """What GPUs do that nobody here asked for; None where there is nothing of it."""
    surplus = max(seen.running, seen.jobs_running) - launches
    if surplus <= 0:
        return None
    return (
        f"{surplus} more of its GPUs work than this database has launches there ({launches}): look for their jobs in "
        "RunPod's console, or does another application use this endpoint?"
    )


def starting_too_long(seconds: float, limit_seconds: float) -> str | None:
    """That workers don't get ready, once that takes too long for a start; None before."""
    if seconds < limit_seconds / 2:
        return None
    return (
        f"its workers have been starting for {seconds / 60:.0f} minutes, and none gets ready: see their logs in "
        f"RunPod's console; after {limit_seconds / 60:.0f} minutes its launches are stopped, and jobs are held"
    )


def status_lines(health: Mapping[str, Any]) -> list[str]:
    """What `lora-worker status` says of endpoints and held jobs beside its tables."""
    held = health["held"]
    lines = [f"run {run['run_id'][:8]}: {run['problem']}" for run in health["runs"] if run["problem"]]
    lines += [
        f"endpoint {row['endpoint']}: {row['problem']}"
        + (f" (starting for {row['starting_seconds']:.0f} s)" if row["starting_seconds"] else "")
        for row in held["endpoint_problems"]
    ]
    lines += [
        f"held: {row['jobs']} jobs, for {row['name'] or 'the image'} at {row['endpoint']} ({row['error_code']}, "
        f"{row['users']} users); next try in {row['probe_in_seconds']:.0f} s, or `lora-worker resume`"
        for row in held["breakers"]
    ]
    if len({(row["launcher"], row["endpoint"]) for row in health["endpoints"]}) > 1:
        lines += [f"{row['launches']} launches at {row['endpoint']} ({row['launcher']})" for row in health["endpoints"]]
    return lines


class EndpointWatch:
    """Looks at the endpoint of the settings, and at those where held runs wait for their GPU."""

    def __init__(self, services: Services, holdings: Mapping[UUID, Holding]) -> None:
        self._services = services
        self._holdings = holdings
        self._unowned: str | None = None

    @property
    def interval_seconds(self) -> float:
        """Between two looks: often enough for the limit of a start."""
        longest: float = self._services.settings.max_start_seconds / 4
        return min(60.0, longest)

    async def round(self) -> None:
        """Look once, and tell runs, rows and log what is wrong.

        Raises:
            ServiceError: the database did not answer; or the endpoint's workers never get ready, for /readyz.
        """
        launcher = self._services.launcher
        waiting = [held for held in self._holdings.values() if held.waits_for_gpu]
        known = await self._services.queue.health()
        never_ready = None
        for endpoint in {launcher.endpoint, *(held.launch_ref.endpoint or launcher.endpoint for held in waiting)}:
            seen = await launcher.health(endpoint)
            view = await self._note(endpoint, seen, known)
            for held in waiting:
                if (held.launch_ref.endpoint or launcher.endpoint) == endpoint:
                    held.endpoint = view
            if endpoint == launcher.endpoint and seen.state is EndpointState.STARTING:
                never_ready = view.problem
        if never_ready:
            raise ServiceUnavailableError("RunPod", never_ready)

    async def _note(self, endpoint: str, seen: EndpointHealth, known: Mapping[str, Any]) -> EndpointView:
        launcher, settings = self._services.launcher, self._services.settings
        problem = seen.problem
        unowned = unowned_work(seen, launches_at(endpoint, known)) if endpoint == launcher.endpoint else None
        if endpoint == launcher.endpoint:
            # A launch that has just ended is a GPU without a run for a moment: only what is seen twice is said.
            unowned, self._unowned = (unowned if self._unowned else None), unowned
        seconds = await self._services.queue.note_endpoint(
            launcher=launcher.name, endpoint=endpoint, state=str(seen.state), problem=problem or unowned
        )
        late = starting_too_long(seconds, settings.max_start_seconds)
        told = "; ".join(filter(None, (problem, late, unowned)))
        if not told:
            self._services.repeats.clear(("endpoint", endpoint))
        elif self._services.repeats.is_due(("endpoint", endpoint), f"{problem} {late is not None} {unowned}"):
            log.warning("endpoint", endpoint=endpoint, problem=told)
        return EndpointView(problem or late, seconds)
