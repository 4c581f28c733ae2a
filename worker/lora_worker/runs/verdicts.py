"""From what the launcher and the trainer say to what should happen. Pure functions, no I/O.

Every answer of the launcher ends in one row of this table (`judge`):

    launcher says            trainer says            what follows
    ───────────────────────  ──────────────────────  ─────────────────────────────────────────────
    QUEUED                   –                       keep
    RUNNING                  progress, heartbeats    keep
    RUNNING                  silent too long         stop it; then the manifest, else retry as the cloud's fault
    RUNNING                  never checked in        keep: an earlier trainer says nothing before its end; past the
                                                     longest time of a run stop it: over its time
    UNKNOWN                  –                       keep, however often
    COMPLETED                completed               settle from the manifest
    COMPLETED                failed                  retry or fail, by the error's code
    COMPLETED                superseded              keep while another launch owns the run; else await the
                                                     manifest while the newer execution's heartbeat is fresh
    COMPLETED                unpublished             retry: the next attempt publishes
    COMPLETED                legacy success          copy its files, then settle
    COMPLETED                nothing, or unreadable  retry, as a passing fault
    FAILED                   failed                  retry or fail, by the error's code
    FAILED                   "executionTimeout…"     fail: over its time
    FAILED                   "… after 1 retries"     retry, as the GPU cloud's fault
    FAILED                   anything else           retry, as a passing fault
    CANCELLED (not by us)    –                       fail: somebody stopped it at the launcher
    TIMED_OUT                –                       retry, as the GPU cloud's fault
    MISSING                  heartbeat is fresh      await the manifest
    MISSING                  silent too long         retry, as the GPU cloud's fault

Every row that ends a run looks for the manifest first: where it lies, the run has succeeded.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_contract.protocol import FAULTS, ErrorCode, Fault, Point, Progress, Result, Stage
from lora_worker.launchers.base import LaunchState, Observation
from lora_worker.observability.telemetry import redact

_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run ended without a result; `message` is for its user."""

    code: str
    fault: Fault
    message: str


class LegacyResult(BaseModel):
    """A success as the earlier trainer reports it: names and URLs of files to copy."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    files: dict[str, str]
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Keep:
    """Go on polling."""

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over. `failure` holds where no manifest is found; None means that there must be one."""

    failure: Failure
    result: Result | None = None
    legacy: LegacyResult | None = None


@dataclass(frozen=True, slots=True)
class AwaitManifest:
    """The launcher ended or forgot the job, and its trainer may still be at work: the manifest will tell."""

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the launch, then finish."""

    failure: Failure


Verdict = Keep | Finish | AwaitManifest | Stop

WAITING_FOR_DATASET = "waiting_for_dataset"
"""Code and stage of a run that was given back, since its dataset is not validated yet. It is nobody's failure."""

ARTIFACT_MISSING = Failure(
    "artifact_missing", Fault.TRANSIENT, "The training ended, but its result did not arrive in the storage."
)
CANCELLED_ELSEWHERE = Failure(
    "cancelled_at_launcher",
    Fault.PERMANENT,
    "The GPU job was stopped at the GPU provider, outside this application. Start the job again if nobody meant that.",
)
OVER_TIME = Failure(
    ErrorCode.TIME_LIMIT,
    Fault.PERMANENT,
    "The training reached the longest time it may take and was stopped. "
    "Choose fewer epochs or a smaller dataset, or ask for a higher limit.",
)
OVER_BUDGET = Failure(
    ErrorCode.TIME_LIMIT,
    Fault.PERMANENT,
    "The training reached the most it may cost and was stopped. "
    "Choose fewer epochs, a smaller dataset or a cheaper GPU, or ask for a higher limit.",
)
WORKER_KILLED = Failure(
    "worker_killed",
    Fault.PERMANENT,
    "Preparing or finishing this job ended the service several times, so it was given up. Please report it to support.",
)
EARLIER_TRAINER = Failure(
    "earlier_trainer",
    Fault.PERMANENT,
    "The training ended, but was done by an earlier program, whose files this service does not fetch. "
    "Please report it to support.",
)
STORAGE_REFUSED = Failure(
    ErrorCode.STORAGE_REFUSED,
    FAULTS[ErrorCode.STORAGE_REFUSED],
    "The training ended, but the storage does not take its adapter. It is tried again once the storage does.",
)
WORKER_FAULT = Failure(
    "worker_fault", Fault.PERMANENT, "The service could not handle this job. Please report it to support."
)
_SILENT = Failure("gpu_silent", Fault.INFRASTRUCTURE, "The GPU machine was not heard of any more, so it was stopped.")
_LOST = Failure("gpu_lost", Fault.INFRASTRUCTURE, "The GPU machine was lost while it trained.")
_NEVER_STARTED = Failure("gpu_timed_out", Fault.INFRASTRUCTURE, "The GPU provider did not start or finish the job.")
NEVER_READY = Failure(
    "gpu_never_ready",
    Fault.INFRASTRUCTURE,
    "The GPU provider's machines did not get ready for the training in time.",
)
_NO_RESULT = Failure("result_unreadable", Fault.TRANSIENT, "The training ended without a readable result.")
_CRASHED = Failure("trainer_crashed", Fault.TRANSIENT, "The training program ended unexpectedly.")


def unreadable(sentence: str) -> Failure:
    """The failure of a job whose row can't be read; the sentence says why."""
    return Failure("job_unreadable", Fault.PERMANENT, sentence)


def parse_progress(output: Any, *, run_id: str) -> Progress | None:
    """The progress in a running launch's output: ours, or the earlier trainer's; None if neither."""
    if not isinstance(output, dict):
        return None
    try:
        progress = Progress.model_validate(output)
    except ValidationError:
        return _parse_legacy_progress(output, run_id)
    return progress if progress.run_id == run_id else None


def _parse_legacy_progress(output: dict[str, Any], run_id: str) -> Progress | None:
    if "run_id" in output or "progress" not in output:
        return None
    try:
        return Progress.model_validate({**output, "run_id": run_id, "stage": output.get("stage") or Stage.TRAINING})
    except ValidationError:
        return None


def parse_result(output: Any, *, run_id: str) -> Result | LegacyResult | Failure | None:
    """The result in an ended launch's output, whichever trainer wrote it; None if it can't be read."""
    if not isinstance(output, dict):
        return None
    try:
        result = Result.model_validate(output)
    except ValidationError:
        return _parse_legacy_result(output)
    return result if result.run_id == run_id else None


def _parse_legacy_result(output: dict[str, Any]) -> LegacyResult | Failure | None:
    message = output.get("error_message")
    if output.get("status") == "failed" or (message and output.get("status") != "success"):
        return Failure("training_failed", Fault.PERMANENT, _foreign_sentence(message) or _CRASHED.message)
    files = output.get("model_files") or output.get("download_urls")
    if not isinstance(files, dict) or not files:
        return None
    metadata = output.get("model_metadata") or output.get("metadata")
    try:
        return LegacyResult(files=files, metadata=metadata if isinstance(metadata, dict) else {})
    except ValidationError:
        return None


def _foreign_sentence(text: Any) -> str:
    """The line that says what happened, of a program that never promised to keep keys and addresses to itself."""
    lines = str(text or "").strip().splitlines()
    if not lines:
        return ""
    told = lines[-1] if lines[0].startswith("Traceback") else lines[0]
    return redact(_ADDRESS.sub("[address]", told)).strip()[:500]


def _judge_result(observation: Observation, run_id: str, *, owned_elsewhere: bool, alive: bool) -> Verdict:
    parsed = parse_result(observation.output, run_id=run_id)
    if parsed is None:
        return Finish(_NO_RESULT)
    if isinstance(parsed, Failure):
        return Finish(parsed)
    if isinstance(parsed, LegacyResult):
        return Finish(ARTIFACT_MISSING, legacy=parsed)
    if parsed.status == "completed":
        return Finish(ARTIFACT_MISSING, result=parsed)
    if parsed.status == "superseded" and owned_elsewhere:
        return Keep("another launch of this run trains")
    if parsed.status == "superseded" and alive:
        return AwaitManifest()
    return Finish(_failure_of(parsed), result=parsed)


def _failure_of(result: Result) -> Failure:
    if result.error is not None:
        return Failure(result.error.code, FAULTS[result.error.code], result.error.sentence())
    code = {"unpublished": ErrorCode.GRANT_MISSING, "superseded": ErrorCode.SUPERSEDED}.get(result.status)
    if code is None:
        return _NO_RESULT
    return Failure(code, FAULTS[code], "The result could not be collected in time; the next attempt does so.")


def _judge_failed(observation: Observation, run_id: str) -> Finish:
    parsed = parse_result(observation.output, run_id=run_id)
    if isinstance(parsed, Failure):
        return Finish(parsed)
    if isinstance(parsed, Result) and parsed.status != "completed":
        return Finish(_failure_of(parsed), result=parsed)
    error = observation.error or ""
    if "executiontimeout" in error.lower():
        return Finish(OVER_TIME)
    if "timed out after" in error or "retries" in error:
        return Finish(_LOST)
    if _raised_out_of_memory(error):
        return Finish(
            Failure(
                ErrorCode.OUT_OF_MEMORY,
                FAULTS[ErrorCode.OUT_OF_MEMORY],
                "The GPU's memory was too small. Choose a smaller batch size or rank, or a larger GPU.",
            )
        )
    return Finish(_CRASHED)


def _raised_out_of_memory(error: str) -> bool:
    # RunPod gives a raised exception as a JSON object in a string.
    try:
        kind = json.loads(error).get("error_type", "")
    except (ValueError, AttributeError, RecursionError):
        return False
    return "OutOfMemory" in str(kind)


def judge(
    observation: Observation,
    *,
    run_id: str,
    owned_elsewhere: bool,
    checked_in: bool,
    silent_seconds: float,
    lost_seconds: float,
    longest_seconds: float,
) -> Verdict:
    """What a look at a launch means for its run; see the table above.

    `owned_elsewhere`: another launch of the run has checked in. `checked_in`: some launch has, so that its
    trainer has a heartbeat. `silent_seconds`: since this worker has heard anything new of the run, from the
    launcher or by the trainer's heartbeat. `longest_seconds`: more than a run may take.
    """
    match observation.state:
        case LaunchState.COMPLETED:
            alive = silent_seconds < lost_seconds
            return _judge_result(observation, run_id, owned_elsewhere=owned_elsewhere, alive=alive)
        case LaunchState.FAILED:
            return _judge_failed(observation, run_id)
        case LaunchState.CANCELLED:
            return Finish(CANCELLED_ELSEWHERE)
        case LaunchState.TIMED_OUT:
            return Finish(_NEVER_STARTED)
        case LaunchState.MISSING if silent_seconds >= lost_seconds:
            return Finish(_LOST)
        case LaunchState.MISSING:
            return AwaitManifest(observation.reason)
        case LaunchState.RUNNING if not checked_in and silent_seconds >= longest_seconds:
            return Stop(OVER_TIME)
        case LaunchState.RUNNING if checked_in and silent_seconds >= lost_seconds:
            # Its result was lost on the way, or its machine is cut off: RunPod shows both as IN_PROGRESS.
            return Stop(_SILENT)
        case _:
            return Keep(observation.reason)


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """How often and how patiently faults are retried."""

    max_attempts: int
    max_infrastructure_failures: int
    base_seconds: float
    max_seconds: float
    rng: random.Random = field(default_factory=random.Random)


def retry_after(
    failure: Failure, *, transient_failures: int, infrastructure_failures: int, limits: RetryLimits
) -> float | None:
    """Seconds until the next attempt; None when there is none. The counts are of earlier runs.

    Full jitter over the upper half of an exponential backoff, so that jobs that failed together do
    not come back together (Brooker, "Exponential backoff and jitter", AWS 2015).
    """
    if failure.fault is Fault.PERMANENT:
        return None
    if failure.fault is Fault.TRANSIENT:
        count, limit = transient_failures, limits.max_attempts - 1
    else:
        count, limit = infrastructure_failures, limits.max_infrastructure_failures
    if count >= limit:
        return None
    ceiling = min(limits.base_seconds * 2.0**count, limits.max_seconds)
    return ceiling * limits.rng.uniform(0.5, 1.0)


def exhausted(failure: Failure, attempts: int) -> Failure:
    """The failure as its user reads it when no attempt is left."""
    if failure.fault is Fault.PERMANENT or attempts <= 1:
        return failure
    text = f"{failure.message} {attempts} attempts were made; start the job again later, or ask support."
    return Failure(failure.code, failure.fault, text)


@dataclass(frozen=True, slots=True)
class QualityReport:
    """How well a training went, from its own curve."""

    overall_score: int
    convergence_quality: str
    loss_reduction_percent: float | None


def rate_training(points: list[Point], *, final_validation_loss: float | None) -> QualityReport:
    """Score 1 to 5 and a word, by the application's rule (app contract 1.4).

    The reduction is measured between the means of the first and the last tenth of the points, since
    a single step's loss is mostly noise.
    """
    losses = [point.training_loss for point in points if point.training_loss is not None]
    if not losses:
        return QualityReport(3, "unknown", None)
    window = max(1, len(losses) // 10)
    first, last = sum(losses[:window]) / window, sum(losses[-window:]) / window
    reduction = (first - last) / first * 100 if first > 0 else 0.0
    word, score = (
        next(
            (word, score)
            for floor, word, score in ((50, "excellent", 5), (30, "good", 4), (15, "fair", 3), (5, "poor", 2))
            if reduction > floor
        )
        if reduction > 5
        else ("poor", 1)
    )
    if final_validation_loss is not None and final_validation_loss - last > 0.5:
        word, score = "overfit", max(2, score - 1)
    return QualityReport(score, word, round(reduction, 2))
