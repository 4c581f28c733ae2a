"""How long a launch that was not accepted waits for its next try."""

from __future__ import annotations

import pytest

from tests.scripted import assignment, make_services
from worker import launching
from worker.holding import Holding
from worker.launching import patience_seconds
from worker.preflight import make_policy
from worker.pricing import load_prices


@pytest.mark.parametrize(("tries", "seconds"), [(1, 30), (2, 60), (5, 480), (6, 600), (1_026, 600), (10**6, 600)])
def test_a_launch_waits_twice_as_long_each_time_and_never_longer_than_ten_minutes(tries: int, seconds: float) -> None:
    assert patience_seconds(30.0, tries) == seconds


def test_a_provider_may_ask_for_more_patience() -> None:
    assert patience_seconds(3600.0, 1) == patience_seconds(3600.0, 2_000) == 3600


def test_a_job_outlasts_any_number_of_refused_launches() -> None:
    services = make_services()
    holding = Holding.take(services, assignment(None, status="claimed", launches=1_500), asked_at=services.clock())
    holding.launch_tries = 1_500
    launching._wait(holding, "RunPod is not reachable", 30.0)
    assert holding.launch_not_before == services.clock() + 600


@pytest.mark.parametrize("max_run_seconds", [3600, 43_200, 518_400])
@pytest.mark.parametrize("budget", [10, 1_000_000])
def test_a_launch_outlives_its_longest_wait_and_its_longest_execution(max_run_seconds: float, budget: float) -> None:
    policy = make_policy(
        load_prices()[0],
        gpu_count=1,
        budget=budget,
        max_run_seconds=max_run_seconds,
        queue_allowance_seconds=86_400,
    )
    assert policy.execution_seconds <= max_run_seconds
    assert policy.ttl_seconds - policy.execution_seconds == 86_400
    assert policy.ttl_seconds <= 7 * 86_400
