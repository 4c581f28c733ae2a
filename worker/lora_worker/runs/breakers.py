"""What fails for everybody: whether a failure is the base model's or the image's, and what is held for it.

The breakers are rows of the database (`sql/20261123000010_breakers.sql`); this is when they are asked, and what counts.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Literal

import structlog

from lora_contract.protocol import STAGES, ErrorCode, Stage
from lora_worker.database.rows import parse_hyperparameters
from lora_worker.errors import LeaseLostError, PreflightError
from lora_worker.launchers.base import LaunchState, Observation
from lora_worker.runs.failures import NEVER_READY, Failure

if TYPE_CHECKING:
    from lora_worker.runs.held_run import Holding

log = structlog.get_logger(__name__)

_LOOK_AGAIN_SECONDS = 300.0
"""A job that waits while another one tries is looked at again after this, if that one came to no end of use."""

Blamed = Literal["base_model", "image"]

_OF_THE_BASE = frozenset(
    {ErrorCode.BASE_MODEL_UNKNOWN, ErrorCode.BASE_MODEL_UNREACHABLE, ErrorCode.BASE_MODEL_MISMATCH}
)
_WHILE_IT_LOADS = frozenset({ErrorCode.OUT_OF_MEMORY, ErrorCode.DISK_FULL, ErrorCode.CHILD_CRASHED, ErrorCode.INTERNAL})
_OF_AN_IMAGE = frozenset({"ImportError", "ModuleNotFoundError"})


def blame(failure: Failure, observation: Observation | None, *, checked_in: bool, stage: Stage | None) -> Blamed | None:
    """Whose fault a failure is where it may meet everybody who comes next; None where it is the job's own.

    `stage` is the furthest that the trainer is known to have come. What broke while data was read or trained may be
    this user's data, so it holds nobody.
    """
    if failure.code == NEVER_READY.code:
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
    """Whether the container ended before its trainer could say a word. An earlier trainer never checks in at all:
    what its handler raises tells of its job, unless it could not even be imported."""
    if observation is None or observation.state is not LaunchState.FAILED:
        return False
    raised = _raised(observation.error)
    if raised is not None:
        return raised in _OF_AN_IMAGE
    return failure.code in {"trainer_crashed", "gpu_lost"}


def _raised(error: str | None) -> str | None:
    # RunPod gives a raised exception as a JSON object in a string: {"error_type": "<class 'ImportError'>", …}.
    try:
        kind = json.loads(error or "")["error_type"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return str(kind).removeprefix("<class '").removesuffix("'>").rpartition(".")[2]


def blame_of(holding: Holding, failure: Failure, stage: Stage | None) -> dict[str, Any] | None:
    """The `blame` of a run's outcome."""
    reported = [told for told in (holding.progress and holding.progress.stage, stage) if told]
    kind = blame(
        failure,
        holding.observation,
        checked_in=holding.news.checked_in_at is not None,
        stage=max(reported, key=STAGES.index, default=None),
    )
    if kind is None:
        return None
    hold_seconds = holding.services.settings.hold_seconds
    # That an endpoint's workers never get ready is seen for all launches together, and no user's doing.
    return {"kind": kind, "at_once": failure.code == NEVER_READY.code, "hold_seconds": hold_seconds}


async def hold_back(holding: Holding) -> bool:
    """Ask whether the job may be launched now; where it may not, it is in the queue again.

    Raises:
        LeaseLostError: the run is another worker's.
        ServiceError: the database did not answer.
    """
    services, run, job = holding.services, holding.assignment.run, holding.assignment.job
    if job is None:
        return False
    try:
        chosen = parse_hyperparameters(job, default_base_model=services.settings.default_base_model)
    except PreflightError:
        # The preflight says it.
        return False
    answer = await services.queue.pass_breakers(
        run.id,
        run.lease_token,
        base_model=chosen.base_model or "",
        endpoint=services.launcher.endpoint,
        look_again_seconds=math.ceil(min(_LOOK_AGAIN_SECONDS, services.settings.hold_seconds)),
    )
    if answer["go"]:
        return False
    if answer["reason"] == "lease_lost":
        raise LeaseLostError("the lease was lost before the launch")
    kind, name = answer["kind"], answer["name"]
    if services.repeats.is_due(("held", kind, name), "held"):
        log.error("jobs are held", kind=kind, name=name, remedy="see `lora-worker status`")
    log.info("put back", run_id=str(run.id), job_id=str(run.job_id), reason=answer["message"])
    holding.settled_as, holding.report = "queued", None
    return True
