"""The faults that a test can arm in the local RunPod."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sandbox.runpod import Fault, Faults


def strikes(faults: Faults, operation: str, count: int, **details: str) -> list[bool]:
    return [faults.draw(operation, **details) is not None for _ in range(count)]


def test_fault_hits_its_operation_the_requested_number_of_times() -> None:
    faults = Faults()
    number = faults.add("status", "respond", status=502, times=2)
    assert strikes(faults, "run", 1) == [False]
    assert strikes(faults, "status", 3) == [True, True, False]
    assert faults.hits(number) == 2


def test_fault_can_skip_the_first_calls() -> None:
    faults = Faults()
    faults.add("run", "drop_answer", skip=2)
    assert strikes(faults, "run", 4) == [False, False, True, False]


def test_fault_can_be_limited_to_one_job() -> None:
    faults = Faults()
    faults.add("status", "forget", job_id="a")
    assert strikes(faults, "status", 1, job_id="b") == [False]
    assert strikes(faults, "status", 1, job_id="a") == [True]


def test_random_faults_are_reproducible_by_seed() -> None:
    def sample(seed: int) -> list[bool]:
        faults = Faults()
        faults.add("status", "disconnect", times=None, probability=0.5, seed=seed)
        return strikes(faults, "status", 40)

    assert sample(1) == sample(1) != sample(2)
    assert 5 < sum(sample(1)) < 35


def test_faults_strike_in_the_order_they_were_armed() -> None:
    faults = Faults()
    faults.add("run", "respond", status=500)
    faults.add("run", "respond", status=429)
    drawn = [faults.draw("run"), faults.draw("run"), faults.draw("run")]
    assert [fault and fault.status for fault in drawn] == [500, 429, None]


def test_clearing_disarms_everything() -> None:
    faults = Faults()
    faults.add("run", "disconnect", times=None)
    faults.clear()
    assert strikes(faults, "run", 1) == [False]


@pytest.mark.parametrize(
    ("operation", "action"), [("run", "forget"), ("health", "kill_worker"), ("dispatch", "disconnect")]
)
def test_fault_that_does_not_fit_its_operation_is_refused(operation: str, action: str) -> None:
    with pytest.raises(ValidationError, match=f"{action}.*can't happen to.*{operation}"):
        Fault.model_validate({"operation": operation, "action": action})
