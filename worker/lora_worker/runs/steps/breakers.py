"""Circuit breakers: whether a failure is the base model's or the image's, and whether a job is held back for one.

The breakers themselves are rows of the database (`sql/20261123000010_breakers.sql`). This module decides which failures
count for them, and asks them before a launch.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import structlog

from lora_contract.error_codes import ErrorCode
from lora_contract.protocol import STAGES, Stage
from lora_worker.database.rows import parse_hyperparameters
from lora_worker.errors import LeaseLostError, PreflightError
from lora_worker.launchers.base import EndCause, LaunchState, Observation
from lora_worker.observability.actions import Action
from lora_worker.runs.outcomes.failures import NEVER_READY, NOT_PROVEN, TRAINER_OUTDATED, Failure
from lora_worker.runs.state.events import Settled
from lora_worker.runs.state.held_run import HeldRun

log = structlog.get_logger(__name__)

_LOOK_AGAIN_SECONDS = 300.0
"""While a breaker is open, one job is launched to try. The jobs that wait for its end are looked at again after this
time, in case that end tells nothing."""

Blamed = Literal["base_model", "image"]

_OF_THE_BASE = frozenset(
    {ErrorCode.BASE_MODEL_UNKNOWN, ErrorCode.BASE_MODEL_UNREACHABLE, ErrorCode.BASE_MODEL_MISMATCH}
)
_WHILE_IT_LOADS = frozenset({ErrorCode.OUT_OF_MEMORY, ErrorCode.DISK_FULL, ErrorCode.CHILD_CRASHED, ErrorCode.INTERNAL})
_OF_THE_IMAGE = frozenset({NEVER_READY.code, TRAINER_OUTDATED.code, NOT_PROVEN.code})
_OF_ITS_JOB = frozenset({EndCause.RAISED, EndCause.OUT_OF_MEMORY})


def blame(failure: Failure, observation: Observation | None, *, checked_in: bool, stage: Stage | None) -> Blamed | None:
    """Whose fault a failure is, where it may hit all later jobs, too; None where it may be the job's own fault.

    `stage` is the furthest stage that the trainer is known to have reached. What broke while data was read or trained
    may be due to this user's data, so no other job is held for it.
    """
    if failure.code in _OF_THE_IMAGE:
        return "image"
    if failure.code in _OF_THE_BASE:
        return "base_model"
    if not checked_in:
        return "image" if _died_at_its_start(failure, observation) else None
    if failure.code in _WHILE_IT_LOADS and stage is not None:
        loading = STAGES.index(Stage.LOADING_MODEL) <= STAGES.index(stage) < STAGES.index(Stage.TRAINING)
        return "base_model" if loading else None
    return None


def _died_at_its_start(failure: Failure, observation: Observation | None) -> bool:
    """Whether the container ended before its trainer could check in.

    An earlier trainer never checks in: an exception of its handler is its job's fault, unless it is a failed import.
    """
    if observation is None or observation.state is not LaunchState.FAILED:
        return False
    if observation.cause is EndCause.IMPORT_FAILED:
        return True
    return observation.cause not in _OF_ITS_JOB and failure.code in {"trainer_crashed", "gpu_lost"}


def blame_of(held: HeldRun, failure: Failure, stage: Stage | None) -> dict[str, Any] | None:
    """The `blame` of a run's outcome; `stage` is what the trainer's result says, where there is one."""
    reported = [known for known in (held.progress and held.progress.stage, stage) if known]
    kind = blame(
        failure,
        held.observation,
        checked_in=held.has_checked_in,
        stage=max(reported, key=STAGES.index, default=None),
    )
    if kind is None:
        return None
    hold_seconds = held.services.settings.hold_seconds
    # That an endpoint's workers never get ready is seen for all launches together, and is no user's doing: so one
    # such failure is enough.
    return {"kind": kind, "at_once": failure.code == NEVER_READY.code, "hold_seconds": hold_seconds}


async def hold_back(held: HeldRun, endpoint: str) -> Settled | None:
    """Ask whether the job may be launched at this endpoint now: None where it may, else it is in the queue again.

    Raises:
        LeaseLostError: the run is another worker's.
        ServiceError: the database did not answer.
    """
    services, run, job = held.services, held.assignment.run, held.assignment.job
    if job is None:
        return None
    try:
        chosen = parse_hyperparameters(job, default_base_model=services.settings.default_base_model)
    except PreflightError:
        # The preflight comes next, and tells the user.
        return None
    answer = await services.queue.pass_breakers(
        run.id,
        run.lease_token,
        base_model=chosen.base_model or "",
        endpoint=endpoint,
        look_again_seconds=math.ceil(min(_LOOK_AGAIN_SECONDS, services.settings.hold_seconds)),
    )
    if answer["go"]:
        return None
    if answer["reason"] == "lease_lost":
        raise LeaseLostError("the lease was lost before the launch")
    kind, name = answer["kind"], answer["name"]
    if services.repeats.is_due(("held", kind, name), "held"):
        log.error("jobs are held", action=Action.JOBS_HELD, kind=kind, name=name, remedy="see `lora-worker status`")
    log.info("put back", action=Action.RUN_PUT_BACK, reason=answer["message"])
    return Settled("queued")
