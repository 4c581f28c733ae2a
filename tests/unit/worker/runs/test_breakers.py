"""Which failures open a breaker: those of a base model or an image, never those of a user's data."""

from __future__ import annotations

import pytest

from lora_contract.error_codes import FAULTS, ErrorCode, Fault
from lora_contract.protocol import Stage
from lora_worker.launchers.base import EndCause, LaunchState, Observation
from lora_worker.runs.outcomes.failures import NEVER_READY, NOT_PROVEN, TRAINER_OUTDATED, Failure
from lora_worker.runs.steps.breakers import blame

_BASE = (ErrorCode.BASE_MODEL_UNKNOWN, ErrorCode.BASE_MODEL_UNREACHABLE, ErrorCode.BASE_MODEL_MISMATCH)
_LOADING = (ErrorCode.OUT_OF_MEMORY, ErrorCode.DISK_FULL, ErrorCode.CHILD_CRASHED, ErrorCode.INTERNAL)
_OWN = tuple(set(ErrorCode) - set(_BASE) - set(_LOADING))


def of(code: str) -> Failure:
    return Failure(code, FAULTS.get(code, Fault.TRANSIENT), "It broke.")  # type: ignore[call-overload]


def failed(cause: EndCause = EndCause.UNKNOWN, state: LaunchState = LaunchState.FAILED) -> Observation:
    return Observation(state, cause=cause)


@pytest.mark.parametrize("code", sorted(_BASE))
@pytest.mark.parametrize("stage", [None, Stage.SETUP, Stage.LOADING_MODEL])
def test_unavailable_base_model_is_blamed(code: ErrorCode, stage: Stage | None) -> None:
    assert blame(of(code), failed(), checked_in=True, stage=stage) == "base_model"


@pytest.mark.parametrize("code", sorted(_LOADING))
@pytest.mark.parametrize("stage", list(Stage))
def test_base_model_is_blamed_only_for_errors_while_loading(code: ErrorCode, stage: Stage) -> None:
    blamed = blame(of(code), failed(), checked_in=True, stage=stage)
    assert blamed == ("base_model" if stage in {Stage.LOADING_MODEL, Stage.CONFIGURING} else None)


@pytest.mark.parametrize("code", sorted(_OWN))
@pytest.mark.parametrize("stage", list(Stage))
def test_failures_of_the_job_itself_blame_nothing(code: ErrorCode, stage: Stage) -> None:
    assert blame(of(code), failed(), checked_in=True, stage=stage) is None


@pytest.mark.parametrize(
    ("code", "observation", "blamed"),
    [
        ("gpu_lost", failed(EndCause.LOST), "image"),
        ("trainer_crashed", failed(), "image"),
        ("trainer_crashed", failed(EndCause.IMPORT_FAILED), "image"),
        # An earlier trainer never checks in, and its exceptions may come from the data.
        ("trainer_crashed", failed(EndCause.RAISED), None),
        ("out_of_memory", failed(EndCause.OUT_OF_MEMORY), None),
        ("training_failed", failed(), None),
        ("time_limit", failed(EndCause.OVER_TIME), None),
        ("gpu_lost", failed(state=LaunchState.MISSING), None),
        ("gpu_timed_out", failed(state=LaunchState.TIMED_OUT), None),
        ("cancelled_at_launcher", failed(state=LaunchState.CANCELLED), None),
        ("trainer_crashed", None, None),
    ],
)
def test_image_is_blamed_if_it_ends_without_a_report(
    code: str, observation: Observation | None, blamed: str | None
) -> None:
    assert blame(of(code), observation, checked_in=False, stage=None) == blamed
    assert blame(of(code), observation, checked_in=True, stage=None) is None


def test_image_is_blamed_if_workers_never_get_ready() -> None:
    assert blame(NEVER_READY, failed(state=LaunchState.QUEUED), checked_in=False, stage=None) == "image"


@pytest.mark.parametrize("failure", [TRAINER_OUTDATED, NOT_PROVEN])
def test_image_is_blamed_where_its_trainer_proves_nothing(failure: Failure) -> None:
    assert blame(failure, failed(state=LaunchState.RUNNING), checked_in=True, stage=Stage.SETUP) == "image"
