"""The limits of a run's time, money and wait for a GPU, as the worker watches them, and of its trainer's age."""

from __future__ import annotations

from lora_worker.configuration.contradictions import PUBLISHING_SECONDS
from lora_worker.launchers.base import Observation
from lora_worker.runs.outcomes.failures import NEVER_READY, OVER_BUDGET, OVER_TIME, TRAINER_OUTDATED, Failure
from lora_worker.runs.state.held_run import HeldRun

_MARGIN_SECONDS = 180.0
"""The trainer stops itself at its limit, and then the launcher does by its policy; the worker is the last resort."""


def longest_seconds(held: HeldRun) -> float:
    """How long the run may take at most before the worker stops it."""
    return held.services.settings.max_run_seconds - held.assignment.run.spent_seconds + _margin_seconds(held)


def _margin_seconds(held: HeldRun) -> float:
    """How far beyond the job's limits the worker lets a run go; the preflight gives the second part to its launch."""
    return _MARGIN_SECONDS + (PUBLISHING_SECONDS if held.assignment.run.awaits_upload else 0)


def exceeded_limit(held: HeldRun, observation: Observation) -> Failure | None:
    """Why the run must be stopped for a limit; None while it keeps within all of them."""
    if held.needs_proof and held.progress is not None and not held.progress.proves:
        # Whatever it trained would be refused at its end: stopped now, it costs no more than its start.
        return TRAINER_OUTDATED
    if not held.has_checked_in and (_waits_for_workers(held, observation) or _says_nothing(held, observation)):
        return NEVER_READY
    run, seconds, rate = held.assignment.run, held.gpu_seconds(), held.rate
    if seconds > longest_seconds(held):
        return OVER_TIME
    if run.spent_cost + rate.hourly * (seconds - _margin_seconds(held)) / 3600 > rate.max_cost:
        return OVER_BUDGET
    return None


def _waits_for_workers(held: HeldRun, observation: Observation) -> bool:
    return held.endpoint.keeps_waiting(
        observation.state,
        launch_age_seconds=held.launch_age_seconds,
        limit_seconds=held.services.settings.max_start_seconds,
    )


def _says_nothing(held: HeldRun, observation: Observation) -> bool:
    """Whether a machine is paid for that should have checked in long ago.

    A machine that only its run's own channel can speak for checks in as soon as it starts. Where a launcher returns
    outputs, an earlier trainer may be at work, which says nothing before its end.
    """
    launcher = held.services.places.launcher_at(held.launch_ref.endpoint)
    if launcher is None or launcher.takes_errands or observation.is_reported:
        return False
    return (observation.execution_seconds or 0.0) >= held.services.settings.max_start_seconds
