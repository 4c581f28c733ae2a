"""Checks the endpoint through its launcher, and that each launch there belongs to a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_contract.words import counted
from lora_worker.doctor.check import Check
from lora_worker.launchers.endpoints import launches_at, unowned_work
from lora_worker.services import Services


async def check_endpoint(services: Services) -> list[Check]:
    """Check that the endpoint answers and has workers for what waits there."""
    launcher = services.launcher
    seen = await launcher.health()
    if not seen.reachable or seen.problem:
        return [Check("endpoint", False, seen.problem or "not reachable", launcher.guide.check)]
    return [
        Check("endpoint", True, f"{counted(seen.workers, 'worker')}, {counted(seen.jobs_queued, 'job')} in its queue")
    ]


async def check_launches(services: Services) -> list[Check]:
    """Check that every live launch can be reached at its endpoint, and that no job there belongs to no run."""
    health, launcher = await services.queue.health(), services.launcher
    checks = [Check("runs", False, f"the run {run['run_id']} can't go on: {run['problem']}", "see docs/reliability.md")
              for run in health["runs"] if run["problem"]]  # fmt: skip
    for row in health["endpoints"]:
        if row["launcher"] != launcher.name:
            text = f"{counted(row['launches'], 'launch', 'launches')} by {row['launcher']}, which this worker is not"
            checks.append(Check("launches", False, text, "start a worker that knows it"))
        elif row["endpoint"] not in {None, launcher.endpoint}:
            former = await launcher.health(row["endpoint"])
            text = f"{counted(row['launches'], 'launch', 'launches')} at {row['endpoint']}, a former endpoint"
            remedy = "" if former.reachable else launcher.guide.former_endpoint
            checks.append(Check("launches", former.reachable, text + _told(former.problem), remedy))
    seen = await launcher.health()
    launches = launches_at(launcher.endpoint, health)
    unowned = unowned_work(seen, launches, launcher.guide) if seen.reachable else None
    if unowned:
        checks.append(Check("launches", False, unowned, "ask again in a minute, then cancel them there"))
    return checks + [_held(breaker) for breaker in health["held"]["breakers"]]


def _told(problem: str | None) -> str:
    return f": {problem}" if problem else ""


def _held(breaker: Mapping[str, Any]) -> Check:
    what = f"the base model {breaker['name']}" if breaker["kind"] == "base_model" else "the image"
    text = (
        f"{counted(breaker['jobs'], 'job')} held: {what} failed at {breaker['endpoint']} for {breaker['users']} users "
        f"({breaker['error_code']}: {breaker['error_message']}); the next try is in {breaker['probe_in_seconds']:.0f} s"
    )
    return Check("held", False, text, f"mend it, then `lora-worker resume {breaker['name'] or breaker['endpoint']}`")
