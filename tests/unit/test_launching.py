"""How long a launch that was not accepted waits for its next try."""

from __future__ import annotations

import pytest

from tests.scripted import assignment, make_services
from worker import launching
from worker.holding import Holding
from worker.launching import patience_seconds


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
