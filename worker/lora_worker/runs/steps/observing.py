"""A look at a run's launch through its launcher."""

from __future__ import annotations

from dataclasses import replace

from lora_worker.launchers.base import LaunchState, Observation
from lora_worker.runs.outcomes.results import parse_progress
from lora_worker.runs.state.events import Observed
from lora_worker.runs.state.held_run import HeldRun

_OVER_BY_REPORT = frozenset(
    {LaunchState.QUEUED, LaunchState.RUNNING, LaunchState.COMPLETED, LaunchState.FAILED, LaunchState.MISSING}
)
"""Why a launch was CANCELLED or TIMED_OUT its launcher knows better, and nothing follows from what is UNKNOWN. One that
is QUEUED has run all the same: the launcher's view lags, or the cloud starts the ended container again."""


async def observe(held: HeldRun, external_job_id: str) -> Observed:
    """Look at a launch of the run, and read its progress where it is running."""
    observation, whereabouts = await held.whereabouts.observe(
        external_job_id, held.news.endpoint, age_seconds=held.launch_age_seconds
    )
    running = observation.state is LaunchState.RUNNING
    return Observed(
        with_report(held, external_job_id, observation),
        whereabouts,
        progress=parse_progress(observation.output, run_id=held.run_id) if running else None,
    )


def with_report(held: HeldRun, external_job_id: str, observation: Observation) -> Observation:
    """The observation, with the result that the launch's trainer has reported itself, where its launcher carries none.

    Such a result is a container's word, as a launcher's output is, and read as carefully.
    """
    result = held.news.result
    is_owner = held.news.external_job_id == external_job_id
    has_output = observation.ended and observation.output is not None
    if result is None or not is_owner or has_output or observation.state is LaunchState.UNKNOWN:
        return observation
    return replace(observation, output=result, is_reported=observation.state in _OVER_BY_REPORT)
