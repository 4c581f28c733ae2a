"""Checks the endpoint through its launcher, and that each launch there belongs to a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_contract.words import counted
from lora_worker.doctor.check import Check
from lora_worker.launchers.base import EndpointHealth
from lora_worker.launchers.endpoints import launches_at, unowned_work
from lora_worker.launchers.places import Place, Places
from lora_worker.services import Services


class EndpointChecks:
    """The checks of all places, each of which is looked at once."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._seen: dict[str, EndpointHealth] = {}

    async def check_endpoint(self, _services: Services) -> list[Check]:
        """Check that the endpoint of each place answers and has workers for what waits there."""
        places = self._services.places
        checks = [_answering(place, await self._look(place), among=places) for place in places.all]
        return [*checks, *_unserved(self._services)]

    async def check_launches(self, services: Services) -> list[Check]:
        """Check that every live launch can be reached at its endpoint, and that no job there belongs to no run."""
        health, places = await services.queue.health(), services.places
        checks = [
            Check("runs", False, f"the run {run['run_id']} can't go on: {run['problem']}", "see docs/reliability.md")
            for run in health["runs"]
            if run["problem"]
        ]
        for row in health["endpoints"]:
            if row["launcher"] not in places.launchers:
                text = (
                    f"{counted(row['launches'], 'launch', 'launches')} by {row['launcher']}, which this worker is not"
                )
                checks.append(Check("launches", False, text, "start a worker that knows it"))
            elif places.at(row["endpoint"]) is None:
                former = await places.health(row["endpoint"])
                text = f"{counted(row['launches'], 'launch', 'launches')} at {row['endpoint']}, a former endpoint"
                remedy = "" if former.reachable else places.guide_of(row["endpoint"]).former_endpoint
                checks.append(Check("launches", former.reachable, text + _told(former.problem), remedy))
        for place in places.all:
            seen = await self._look(place)
            launches = launches_at(place.endpoint, health)
            unowned = unowned_work(seen, launches, place.launcher.guide) if seen.reachable else None
            if unowned:
                checks.append(Check("launches", False, unowned, "ask again in a minute, then cancel them there"))
        return checks + [_held(breaker) for breaker in health["held"]["breakers"]]

    async def _look(self, place: Place) -> EndpointHealth:
        if place.endpoint not in self._seen:
            self._seen[place.endpoint] = await place.launcher.health()
        return self._seen[place.endpoint]


def _unserved(services: Services) -> list[Check]:
    """Tell of the places whose adapters can't be called by a name, where that is wanted."""
    places = services.places
    names = [place.name for place in places.all if not place.keeps_served_adapters]
    if not names or not services.settings.serve_adapters:
        return []
    if places.serving is None:
        text = f"adapters that are trained at {places.default.launcher.guide.title} can't be called by a name"
        remedy = (
            "name an endpoint whose volume an answering server reads in LORA_WORKER_ROUTES (docs/serving.md), or set "
            "LORA_WORKER_SERVE_ADAPTERS=false and fetch adapters with `lora-worker download`"
        )
    else:
        text = f"adapters that are trained at {', '.join(names)} can't be called by a name"
        remedy = (
            f"have the rules send the jobs whose adapters shall be served to {places.serving.name}; `lora-worker "
            "download` fetches the others"
        )
    return [Check("serving", None, text, remedy)]


def _answering(place: Place, seen: EndpointHealth, *, among: Places) -> Check:
    named = f"{place.name}: " if len(among.all) > 1 else ""
    if not seen.reachable or seen.problem:
        remedy = place.launcher.guide.check
        if named:
            remedy += f", and [endpoints.{place.name}] of the routing table"
        return Check("endpoint", False, f"{named}{seen.problem or 'not reachable'}", remedy)
    text = f"{counted(seen.workers, 'worker')}, {counted(seen.jobs_queued, 'job')} in its queue"
    return Check("endpoint", True, named + text)


def _told(problem: str | None) -> str:
    return f": {problem}" if problem else ""


def _held(breaker: Mapping[str, Any]) -> Check:
    what = f"the base model {breaker['name']}" if breaker["kind"] == "base_model" else "the image"
    text = (
        f"{counted(breaker['jobs'], 'job')} held: {what} failed at {breaker['endpoint']} for {breaker['users']} users "
        f"({breaker['error_code']}: {breaker['error_message']}); the next try is in {breaker['probe_in_seconds']:.0f} s"
    )
    return Check("held", False, text, f"mend it, then `lora-worker resume {breaker['name'] or breaker['endpoint']}`")
