"""A machine that never checks in is given up after the time of a start, where every trainer must check in."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from lora_worker.launchers.base import LaunchState, Observation
from lora_worker.runs.outcomes.failures import NEVER_READY
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.runs.steps.limits import exceeded_limit
from tests.scripted import FakeLauncher, assignment, make_services

RATE = {"gpu_type": "H100", "gpu_count": 1, "price_per_hour": 2.0, "max_cost": 50}
LIMIT = 3600.0


def held(*, returns_output: bool, has_checked_in: bool = False) -> HeldRun:
    launcher = FakeLauncher()
    launcher.takes_errands = returns_output
    services = make_services(launcher=launcher)
    holding = HeldRun.take(services, assignment(launched_with=RATE), asked_at=services.clock())
    if has_checked_in:
        holding.news = holding.news.model_copy(update={"checked_in_at": datetime(2026, 1, 1, tzinfo=UTC)})
    return holding


@pytest.mark.parametrize("state", [LaunchState.RUNNING, LaunchState.QUEUED])
def test_machine_that_never_checks_in_is_given_up(state: LaunchState) -> None:
    holding = held(returns_output=False)
    assert holding.services.settings.max_start_seconds == LIMIT
    assert exceeded_limit(holding, Observation(state, execution_seconds=LIMIT - 1)) is None
    assert exceeded_limit(holding, Observation(state)) is None
    seen = Observation(state, execution_seconds=LIMIT)
    assert exceeded_limit(holding, seen) is NEVER_READY
    assert exceeded_limit(holding, replace(seen, is_reported=True)) is None


def test_trainer_that_may_be_of_an_earlier_release_or_speaks_goes_on() -> None:
    seen = Observation(LaunchState.RUNNING, execution_seconds=LIMIT)
    assert exceeded_limit(held(returns_output=True), seen) is None
    assert exceeded_limit(held(returns_output=False, has_checked_in=True), seen) is None
