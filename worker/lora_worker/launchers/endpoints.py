"""What the counts of an endpoint's workers mean: whether they get ready, and whether GPUs work for nobody.

A launcher starts an image that ends while it starts again and again, and its jobs stay in the queue for as long
as their policy allows; no more may be said of it than these counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_worker.launchers.base import EndpointHealth, Guide, LaunchState


@dataclass(frozen=True, slots=True)
class EndpointView:
    """How a run's endpoint was seen last."""

    problem: str | None = None
    """A sentence for the operator."""
    starting_seconds: float = 0.0
    """For how long its workers have been starting without one of them getting ready."""
    without_gpu_seconds: float = 0.0
    """For how long jobs have waited there without a GPU, or without an answer of the endpoint."""

    def keeps_waiting(self, state: LaunchState, *, launch_age_seconds: float, limit_seconds: float) -> bool:
        """Whether a launch has waited its limit for workers that never get ready."""
        waited = min(self.starting_seconds, launch_age_seconds)
        return state is LaunchState.QUEUED and waited >= limit_seconds


def launches_at(endpoint: str, health: Mapping[str, Any]) -> int:
    """How many launches the database knows that may be alive at an endpoint; `health` is the queue's."""
    return sum(row["launches"] for row in health.get("endpoints", ()) if row["endpoint"] in {endpoint, None})


def unowned_work(seen: EndpointHealth, launches: int, guide: Guide) -> str | None:
    """What GPUs do that nobody here asked for; None where there is nothing of it."""
    surplus = max(seen.running, seen.jobs_running) - launches
    if surplus <= 0:
        return None
    return (
        f"{surplus} more of its GPUs work than this database has launches there ({launches}): look for their jobs in "
        f"{guide.console}, or does another application use this endpoint?"
    )


def starting_too_long(seconds: float, limit_seconds: float, guide: Guide) -> str | None:
    """That workers don't get ready, once that takes too long for a start; None before."""
    if seconds < limit_seconds / 2:
        return None
    return (
        f"its workers have been starting for {seconds / 60:.0f} minutes, and none gets ready: see their logs in "
        f"{guide.console}; after {limit_seconds / 60:.0f} minutes its launches are stopped, and jobs are held"
    )
