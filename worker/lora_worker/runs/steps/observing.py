"""A look at a run's launch through its launcher."""

from __future__ import annotations

from lora_worker.launchers.base import LaunchState
from lora_worker.runs.outcomes.results import parse_progress
from lora_worker.runs.state.events import Observed
from lora_worker.runs.state.held_run import HeldRun


async def observe(held: HeldRun, external_job_id: str) -> Observed:
    """Look at a launch of the run, and read its progress where it is running."""
    observation, whereabouts = await held.whereabouts.observe(
        external_job_id, held.news.endpoint, age_seconds=held.launch_age_seconds
    )
    running = observation.state is LaunchState.RUNNING
    return Observed(
        observation,
        whereabouts,
        progress=parse_progress(observation.output, run_id=held.run_id) if running else None,
    )
