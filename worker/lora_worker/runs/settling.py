"""From an ended run to its settled rows: look for the manifest, verify, describe, write once."""

from __future__ import annotations

import dataclasses
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from lora_contract.crash_points import crash_point
from lora_contract.curve import format_log
from lora_contract.protocol import LOG_NAME, ErrorCode, Fault, FinalMetrics, Manifest, Point, Result, Summary
from lora_worker.database.rows import Job
from lora_worker.datasets.preflight import WAITING_FOR_DATASET
from lora_worker.errors import ArtifactError, ServiceError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.observability.telemetry import SETTLED
from lora_worker.runs import notices
from lora_worker.runs.artifacts import Description, curve_of, describe_artifact, told_notes
from lora_worker.runs.breakers import blame_of
from lora_worker.runs.closing import Outcome, close
from lora_worker.runs.earlier_trainer import Bounds, copy_files
from lora_worker.runs.failures import (
    ARTIFACT_MISSING,
    EARLIER_TRAINER,
    STORAGE_REFUSED,
    WORKER_KILLED,
    Failure,
)
from lora_worker.runs.progress_entries import started_notice
from lora_worker.runs.quality import rate_training
from lora_worker.runs.report_rows import final_columns, partial_columns, point_rows
from lora_worker.runs.results import LegacyResult
from lora_worker.runs.retries import exhausted, retry_after
from lora_worker.storage.places import Places
from lora_worker.storage.publication import Shelf, collect

if TYPE_CHECKING:
    from lora_worker.runs.held_run import Holding

log = structlog.get_logger(__name__)

_FOREIGN_TRIES = 5
"""How often gigabytes are fetched for a storage that does not take them."""
_MAX_LOG_BYTES = 64 * 1024**2
_EARLIER_REMEDY = "give the endpoint this trainer's image, or set LORA_WORKER_EARLIER_TRAINER=true"
_DATASET_SECONDS = 60.0
_MAX_DATASET_SECONDS = 1800.0
"""How long a job waits that was given back for its dataset: doubled with each attempt, from the one to the other."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended. Without a failure it was cancelled; with `look`, a manifest overrules the failure."""

    failure: Failure | None
    result: Result | None = None
    legacy: LegacyResult | None = None
    look: bool = False


async def settle(holding: Holding, ending: Ending) -> str:
    """Close the run in one transaction; the job's status afterwards.

    Raises:
        LeaseLostError: another worker has the run; nothing was written.
        ServiceError: the storage or the database did not answer; nothing was written, or all of it.
    """
    job = holding.assignment.job
    if job is None or not ending.look or holding.news.cancel_requested:
        return await _write(holding, ending, None)
    async with AsyncExitStack() as slot:
        services = holding.services
        # What is fetched from a stranger's address may take as long as it is let, so it gets places of its own.
        slots = services.foreign_slots if ending.legacy and not holding.is_suspect else services.heavy_slots
        await slot.enter_async_context(slots.take(alone=holding.is_suspect))
        if await holding.begin_handling("settling"):
            manifest, ending = await _collect(holding, ending)
        else:
            manifest, ending = None, Ending(WORKER_KILLED, result=ending.result)
        if not holding.is_suspect:
            # A suspect stays alone until it is settled: whoever comes next may end the worker.
            await slot.aclose()
        return await _write(holding, ending, manifest)


async def _write(holding: Holding, ending: Ending, manifest: Manifest | None) -> str:
    run, job = holding.assignment.run, holding.assignment.job
    if job is not None and manifest is None:
        if ending.failure is not None and ending.failure.code == ErrorCode.STORAGE_REFUSED:
            _note_refusal(holding, ending, ending.failure)
        await _keep_log(holding, _partial_points(holding, ending)[0])
    status, outcome = await close(
        holding,
        [
            lambda: _outcome(holding, ending, manifest),
            # The same end without the numbers and texts that its trainer told.
            lambda: _outcome(
                dataclasses.replace(holding, progress=None),
                dataclasses.replace(ending, result=None),
                manifest and _without_words(manifest),
            ),
        ],
    )
    SETTLED.labels(status).inc()
    log.info(
        "settled",
        run_id=str(run.id),
        job_id=str(run.job_id),
        job_status=status,
        error_code=outcome.get("error_code"),
        gpu_seconds=round(outcome["gpu_seconds"], 1),
    )
    return status


def _outcome(holding: Holding, ending: Ending, manifest: Manifest | None) -> Outcome:
    job = holding.assignment.job
    if job is not None and manifest is not None:
        return _success(holding, manifest, job)
    if ending.failure is None or job is None:
        return _cancelled(holding, ending)
    return _failure(holding, ending, ending.failure)


def _without_words(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"metrics": FinalMetrics(), "summary": Summary(), "points": []})


async def _keep_log(holding: Holding, points: list[Point]) -> None:
    """Store the log of a run without an artifact in its folder: its trainer's, where that has uploaded a longer one."""
    services, places = holding.services, Places.of(holding.assignment.run)
    bucket, path = services.settings.artifacts_bucket, places.at(LOG_NAME)
    if not points:
        return
    try:
        if await services.storage.size(bucket, path) is not None:
            return
        crash_point("worker.log.before")
        content, staged = format_log(points).encode(), places.staged(LOG_NAME)
        size = await services.storage.size(bucket, staged)
        holding.require_lease()
        if size is not None and len(content) < size <= _MAX_LOG_BYTES:
            await services.storage.copy(bucket, staged, path)
        else:
            await services.storage.write(bucket, path, content, content_type="application/octet-stream")
        crash_point("worker.log.after")
    except ServiceError as error:
        # The rows have the curve, too; no job waits for its log.
        log.warning("log not kept", run_id=str(holding.assignment.run.id), problem=str(error))


async def _collect(holding: Holding, ending: Ending) -> tuple[Manifest | None, Ending]:
    """The manifest of what is verified and kept; or None, and what the run ended with instead."""
    services, run = holding.services, holding.assignment.run
    shelf = Shelf(
        services.storage,
        services.settings.artifacts_bucket,
        Places.of(run),
        sha256_max_bytes=services.settings.verify_sha256_max_bytes,
        require_lease=holding.require_lease,
    )
    try:
        manifest = await collect(shelf, run_id=run.id)
        if manifest is None and ending.legacy is not None:
            if not services.settings.earlier_trainer:
                log.error("an earlier trainer's result was left", run_id=str(run.id), remedy=_EARLIER_REMEDY)
                return None, Ending(EARLIER_TRAINER)
            manifest = await _copy_foreign(holding, ending.legacy, shelf)
    except ArtifactError as error:
        log.warning("artifact refused", run_id=str(run.id), problem=str(error))
        failure = Failure(ARTIFACT_MISSING.code, Fault.TRANSIENT, str(error))
        return None, Ending(failure, result=ending.result)
    except ServiceRefusedError as error:
        if error.status not in {404, 413, 415}:
            raise
        return None, Ending(STORAGE_REFUSED, result=ending.result)
    return manifest, ending


async def _copy_foreign(holding: Holding, legacy: LegacyResult, shelf: Shelf) -> Manifest:
    run, bounds = holding.assignment.run, Bounds(trusted_hosts=holding.services.settings.earlier_trainer_hosts)
    holding.foreign_tries += 1
    try:
        return await copy_files(legacy, shelf, bounds, run_id=str(run.id), job_id=str(run.job_id))
    except ServiceUnavailableError:
        if holding.foreign_tries < _FOREIGN_TRIES:
            raise
        raise ArtifactError("The trainer's files could not be stored.") from None


def _base(holding: Holding, gpu_seconds: float, points: list[Point], total_steps: int | None) -> dict[str, Any]:
    observation, job = holding.observation, holding.assignment.job
    return {
        "gpu_seconds": gpu_seconds,
        "launcher_ended": observation is not None and observation.ended,
        "notices_if_cancelled": [_cancelled_notice(holding, gpu_seconds)],
        "points": point_rows(points, total_steps=total_steps, limit=holding.services.settings.chart_points),
        "most_points": holding.services.settings.chart_points,
        "job": partial_columns(points, total_steps=total_steps, total_epochs=job.total_epochs if job else None),
    }


def _success(holding: Holding, manifest: Manifest, job: Job) -> dict[str, Any]:
    run, services = holding.assignment.run, holding.services
    summary = manifest.summary
    gpu_seconds = _billed_seconds(holding, summary)
    points = curve_of(manifest, holding.progress.points if holding.progress else [])
    artifact = describe_artifact(
        holding.assignment,
        manifest,
        Description(
            rate_training(points, final_validation_loss=manifest.metrics.final_validation_loss),
            gpu_seconds=gpu_seconds,
            now=services.now(),
        ),
    )
    fee = services.settings.storage_fee
    name = holding.assignment.dataset.name if holding.assignment.dataset else "your dataset"
    archive = Places.of(run).archive
    return {
        **_base(holding, gpu_seconds, points, summary.total_steps),
        # The manifest's curve goes from the first step to the last, so it replaces what reports have left.
        "points_are_whole": bool(manifest.points),
        "run_status": "succeeded",
        "job_status": "completed",
        "storage_fee": fee,
        "job": final_columns(manifest.metrics, summary, points),
        "artifact": {**artifact, "archive": archive and f"{services.settings.artifacts_bucket}/{archive}"},
        "notices": [
            started_notice(holding),
            notices.job_completed(job.id, name, holding.cost(gpu_seconds, fee=fee), told_notes(summary, job)),
            notices.artifact_ready(job.id, run.id, artifact["name"]),
        ],
    }


def _cancelled_notice(holding: Holding, gpu_seconds: float) -> dict[str, Any]:
    return notices.job_cancelled(holding.assignment.run.job_id, holding.cost(gpu_seconds))


def _billed_seconds(holding: Holding, summary: Summary) -> float:
    """The seconds of the bill; what the trainer says of them and of its GPUs is logged where it is something else."""
    holding.compare_claims(summary)
    billed = holding.gpu_seconds(summary.execution_seconds)
    if (summary.execution_seconds or 0.0) > billed + holding.services.settings.lost_seconds:
        log.warning(
            "the trainer claims more seconds than the clocks say",
            run_id=str(holding.assignment.run.id),
            claimed=summary.execution_seconds,
            billed=round(billed, 1),
        )
    return billed


def _partial_points(holding: Holding, ending: Ending) -> tuple[list[Point], int | None]:
    progress = holding.progress
    if ending.result and ending.result.points:
        return ending.result.points, ending.result.summary.total_steps or (progress.total_steps if progress else None)
    return (progress.points, progress.total_steps) if progress else ([], None)


def _partial(holding: Holding, ending: Ending) -> dict[str, Any]:
    """What stands in the outcome of every run without an artifact."""
    summary = ending.result.summary if ending.result else Summary()
    points, total_steps = _partial_points(holding, ending)
    return _base(holding, _billed_seconds(holding, summary), points, total_steps)


def _cancelled(holding: Holding, ending: Ending) -> dict[str, Any]:
    base = _partial(holding, ending)
    return {
        **base,
        "run_status": "cancelled",
        "job_status": "cancelled",
        "notices": base["notices_if_cancelled"],
    }


def _given_back(holding: Holding, ending: Ending, failure: Failure) -> dict[str, Any]:
    """The outcome of a run that was claimed too early. It counts as no failure, and nobody is told."""
    attempt = holding.assignment.run.attempt
    return {
        **_partial(holding, ending),
        "run_status": "failed",
        "job_status": "queued",
        "fault": None,
        "error_code": failure.code,
        "error_message": failure.message,
        "retry_after_seconds": min(_DATASET_SECONDS * 2.0 ** min(attempt - 1, 16), _MAX_DATASET_SECONDS),
        "waiting_stage": failure.code,
        "notices": [],
    }


def _failure(holding: Holding, ending: Ending, failure: Failure) -> dict[str, Any]:
    if failure.code == WAITING_FOR_DATASET:
        return _given_back(holding, ending, failure)
    run = holding.assignment.run
    seconds = retry_after(
        failure,
        transient_failures=run.transient_failures,
        infrastructure_failures=run.infrastructure_failures,
        limits=holding.services.retry_limits,
    )
    outcome: dict[str, Any] = {
        **_partial(holding, ending),
        "run_status": "lost" if failure.code in {"gpu_lost", "gpu_silent"} else "failed",
        "fault": str(failure.fault),
        "error_code": str(failure.code),
        "blame": blame_of(holding, failure, ending.result.stage if ending.result else None),
    }
    # A training may fail before any poll has seen it start.
    started = [started_notice(holding)] if holding.news.checked_in_at else []
    if seconds is None:
        told = exhausted(failure, run.attempt)
        ended = {"job_status": "failed", "error_message": told.message}
        return {**outcome, **ended, "notices": [*started, notices.job_failed(run.job_id, told.message)]}
    return {
        **outcome,
        "job_status": "queued",
        "error_message": failure.message,
        "retry_after_seconds": seconds,
        "waiting_stage": _waiting_stage(failure),
        "notices": [*started, notices.job_requeued(run.job_id, run.id, failure.message, run.attempt)],
    }


def _waiting_stage(failure: Failure) -> str:
    """What the job's page says while it waits for its next attempt."""
    return "waiting_for_storage" if failure.code == ErrorCode.STORAGE_REFUSED else f"retry_after_{failure.code}"[:50]


def _note_refusal(holding: Holding, ending: Ending, failure: Failure) -> None:
    """Have no launch of the job paid for before the storage takes what it refused."""
    run, error = holding.assignment.run, ending.result.error if ending.result else None
    log.error("the storage refused an adapter", run_id=str(run.id), problem=failure.message)
    holding.services.artifacts_bucket.note_refusal(run.job_id, error.too_many_bytes if error else None)
