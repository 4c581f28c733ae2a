"""The steps from an ended run to its settled rows: find the artifact, verify it, describe it, write once.

Each step returns what happened; `advance.settle` takes them one after another.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Any

import structlog

from lora_contract.crash_points import crash_point
from lora_contract.curve import format_log
from lora_contract.error_codes import ErrorCode, Fault
from lora_contract.protocol import LOG_NAME, FinalMetrics, Manifest, Point, Summary
from lora_worker.database.rows import Job
from lora_worker.database.submission_rows import TRIAL_NAME
from lora_worker.datasets.preflight import WAITING_FOR_DATASET
from lora_worker.errors import (
    ArtifactError,
    ProofMissingError,
    ProofRefusedError,
    ServiceError,
    ServiceRefusedError,
    ServiceUnavailableError,
)
from lora_worker.observability.actions import Action
from lora_worker.runs.outcomes.failures import (
    ARTIFACT_MISSING,
    EARLIER_TRAINER,
    NO_GPU_THERE,
    NOT_PROVEN,
    STORAGE_REFUSED,
    UPDATE_IMAGE,
    Failure,
)
from lora_worker.runs.outcomes.results import LegacyResult
from lora_worker.runs.outcomes.retries import exhausted, retry_after
from lora_worker.runs.rows import notices
from lora_worker.runs.rows.artifacts import (
    Description,
    brought_by,
    curve_of,
    describe_artifact,
    notes_for_user,
    why_unserved,
)
from lora_worker.runs.rows.figures import figures_of, score_figure
from lora_worker.runs.rows.improvement import brought_sentences
from lora_worker.runs.rows.progress_entries import started_notice
from lora_worker.runs.rows.quality import rate_run
from lora_worker.runs.rows.report_rows import final_columns, partial_columns, point_rows
from lora_worker.runs.state.events import Ending, Settled
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.runs.steps.breakers import blame_of
from lora_worker.runs.steps.claims import billed_seconds
from lora_worker.runs.steps.closing import Outcome, close
from lora_worker.runs.steps.earlier_trainer import Bounds, copy_files
from lora_worker.runs.steps.telling import tell_end
from lora_worker.storage.artifact_paths import ArtifactPaths
from lora_worker.storage.publication import ArtifactStore, collect

log = structlog.get_logger(__name__)

_FETCH_TRIES = 5
"""How often gigabytes are fetched while the storage does not take them."""
_MAX_LOG_BYTES = 64 * 1024**2
_EARLIER_REMEDY = "give the endpoint this trainer's image, or set LORA_WORKER_EARLIER_TRAINER=true"
_NOT_TRIED = (
    "An earlier training program made this adapter, which does not try it on its base: ask it something, and compare "
    "the answer with the base's."
)
_DATASET_SECONDS = 60.0
_MAX_DATASET_SECONDS = 1800.0
"""A job that was claimed before its dataset was ready waits this long, doubled with each attempt up to the maximum."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What the storage holds of an ended run's artifact, and how the run ended in view of that."""

    manifest: Manifest | None
    """Of the verified artifact in the run's folder; None where there is none."""
    ending: Ending


@dataclass(frozen=True, slots=True)
class ForeignFiles:
    """The artifact lies at addresses of an earlier trainer's choice, and is to be fetched from there."""

    legacy: LegacyResult


def looks_for_artifact(held: HeldRun, ending: Ending) -> bool:
    """Whether the storage is searched for the run's artifact before the run is settled."""
    return held.assignment.job is not None and ending.look and not held.news.cancel_requested


async def collect_artifact(held: HeldRun, ending: Ending) -> Collected | ForeignFiles:
    """Verify the artifact that the run's trainer has uploaded, and keep it in the run's folder.

    Raises:
        LeaseLostError: the run is another worker's now.
        ServiceError: the storage did not answer.
    """
    services = held.services
    found = await _judge(ending, collect(_store(held), run_id=held.assignment.run.id, needs_proof=held.needs_proof))
    if found.manifest is not None or found.ending is not ending or ending.legacy is None:
        return found
    if not services.settings.earlier_trainer:
        log.error("an earlier trainer's result was left", action=Action.ARTIFACT_FOREIGN, remedy=_EARLIER_REMEDY)
        return Collected(None, Ending(EARLIER_TRAINER))
    return ForeignFiles(ending.legacy)


async def fetch_artifact(held: HeldRun, ending: Ending, legacy: LegacyResult) -> Collected:
    """Copy an earlier trainer's files into the run's folder.

    Raises:
        LeaseLostError: the run is another worker's now.
        ServiceError: the storage did not answer; the next cycle tries again.
    """
    return await _judge(ending, _copy_foreign(held, legacy))


async def _judge(ending: Ending, work: Awaitable[Manifest | None]) -> Collected:
    """The manifest that the work brings; or, where its artifact can't be kept, what the run ended with instead."""
    try:
        return Collected(_with_note(await work), ending)
    except ProofMissingError as error:
        log.error("artifact refused", action=Action.TRAINER_OUTDATED, problem=str(error), remedy=UPDATE_IMAGE)
        return Collected(None, Ending(NOT_PROVEN, result=ending.result))
    except ArtifactError as error:
        log.warning("artifact refused", action=Action.ARTIFACT_REFUSED, problem=str(error))
        code = "proof_refused" if isinstance(error, ProofRefusedError) else ARTIFACT_MISSING.code
        failure = Failure(code, Fault.TRANSIENT, str(error))
        return Collected(None, Ending(failure, result=ending.result))
    except ServiceRefusedError as error:
        if error.status not in {404, 413, 415}:
            raise
        return Collected(None, Ending(STORAGE_REFUSED, result=ending.result))


def _with_note(manifest: Manifest | None) -> Manifest | None:
    """The manifest, with a sentence for the user where nobody has tried the adapter: its trainer is an earlier one."""
    if manifest is None or manifest.application is not None:
        return manifest
    summary = manifest.summary.model_copy(update={"notes": [*manifest.summary.notes, _NOT_TRIED]})
    return manifest.model_copy(update={"summary": summary})


def _store(held: HeldRun) -> ArtifactStore:
    settings = held.services.settings
    return ArtifactStore(
        held.services.storage,
        settings.artifacts_bucket,
        ArtifactPaths.of(held.assignment.run),
        sha256_max_bytes=settings.verify_sha256_max_bytes,
        require_lease=held.require_lease,
    )


async def _copy_foreign(held: HeldRun, legacy: LegacyResult) -> Manifest:
    run, bounds = held.assignment.run, Bounds(trusted_hosts=held.services.settings.earlier_trainer_hosts)
    try:
        return await copy_files(legacy, _store(held), bounds, run_id=held.run_id, job_id=str(run.job_id))
    except ServiceUnavailableError:
        if held.fetch_tries < _FETCH_TRIES:
            raise
        raise ArtifactError("The trainer's files could not be stored.") from None


async def close_run(held: HeldRun, ending: Ending, manifest: Manifest | None) -> Settled:
    """Close the run in one transaction.

    Raises:
        LeaseLostError: another worker has the run; nothing was written.
        ServiceError: the database did not answer; either nothing was written, or all of it.
    """
    job = held.assignment.job
    if job is not None and manifest is None:
        if ending.failure is not None and ending.failure.code == ErrorCode.STORAGE_REFUSED:
            _note_refusal(held, ending, ending.failure)
        await _keep_log(held, _partial_points(held, ending)[0])
    status, outcome = await close(
        held,
        [
            lambda: _outcome(held, ending, manifest),
            # The same end without the numbers and texts that come from its trainer.
            lambda: _outcome(
                replace(held, progress=None),
                replace(ending, result=None),
                manifest and _without_words(manifest),
            ),
        ],
    )
    tell_end(held, status, outcome)
    return Settled(status)


def _outcome(held: HeldRun, ending: Ending, manifest: Manifest | None) -> Outcome:
    job = held.assignment.job
    if job is not None and manifest is not None:
        return _success(held, manifest, job)
    if ending.failure is None or job is None:
        return _cancelled(held, ending)
    return _failure(held, ending, ending.failure)


def _without_words(manifest: Manifest) -> Manifest:
    # The name under which it is served stays: without it nobody would remove a deleted adapter. `brought_by` checks it.
    nothing = {"metrics": FinalMetrics(), "summary": Summary(), "points": [], "evaluation": None}
    return manifest.model_copy(update=nothing)


async def _keep_log(held: HeldRun, points: list[Point]) -> None:
    """Store the log of a run without an artifact: its trainer's own, where that has uploaded a longer one."""
    services, paths = held.services, ArtifactPaths.of(held.assignment.run)
    bucket, path = services.settings.artifacts_bucket, paths.final(LOG_NAME)
    if not points:
        return
    try:
        if await services.storage.size(bucket, path) is not None:
            return
        crash_point("worker.log.before")
        content, staged = format_log(points).encode(), paths.staged(LOG_NAME)
        size = await services.storage.size(bucket, staged)
        held.require_lease()
        if size is not None and len(content) < size <= _MAX_LOG_BYTES:
            await services.storage.copy(bucket, staged, path)
        else:
            await services.storage.write(bucket, path, content, content_type="application/octet-stream")
        crash_point("worker.log.after")
    except ServiceError as error:
        # The database has the curve, too; so no job waits for its log.
        log.warning("log not kept", action=Action.RUN_LOG_NOT_KEPT, problem=str(error))


def _base(held: HeldRun, gpu_seconds: float, points: list[Point], total_steps: int | None) -> dict[str, Any]:
    observation, job = held.observation, held.assignment.job
    return {
        "gpu_seconds": gpu_seconds,
        "launcher_ended": observation is not None and observation.ended,
        "notices_if_cancelled": [_cancelled_notice(held, gpu_seconds)],
        "points": point_rows(points, total_steps=total_steps, limit=held.services.settings.chart_points),
        "most_points": held.services.settings.chart_points,
        "job": partial_columns(points, total_steps=total_steps, total_epochs=job.total_epochs if job else None),
    }


def _success(held: HeldRun, manifest: Manifest, job: Job) -> dict[str, Any]:
    run, services = held.assignment.run, held.services
    summary = manifest.summary
    gpu_seconds = billed_seconds(held, summary)
    points = curve_of(manifest, held.progress.points if held.progress else [])
    quality = rate_run(summary.method, points, manifest.metrics, manifest.evaluation)
    brought = brought_by(manifest, job.id, quality)
    notes = notes_for_user(summary, job, run.launched_with, unserved=_unserved(held, brought.serving_name))
    artifact = describe_artifact(
        held.assignment,
        manifest,
        Description(
            quality,
            gpu_seconds=gpu_seconds,
            now=services.now(),
            serving_name=brought.serving_name,
            notes=notes,
        ),
    )
    fee = services.settings.storage_fee
    name = held.assignment.dataset.name if held.assignment.dataset else "your dataset"
    archive = ArtifactPaths.of(run).archive
    return {
        **_base(held, gpu_seconds, points, summary.total_steps),
        # The manifest's curve goes from the first step to the last, so it replaces the points of earlier reports.
        "points_are_whole": bool(manifest.points),
        "run_status": "succeeded",
        "job_status": "completed",
        "storage_fee": fee,
        "pace": summary.pace and summary.pace.model_dump(),
        "measured": brought.model_dump(mode="json"),
        "figures": [score_figure(quality), *figures_of(brought.evaluation)],
        "job": final_columns(manifest.metrics, summary, points),
        "artifact": {**artifact, "archive": archive and f"{services.settings.artifacts_bucket}/{archive}"},
        "notices": [
            started_notice(held),
            notices.job_completed(
                job.id,
                name,
                held.cost(gpu_seconds, fee=fee),
                brought_sentences(brought),
                notes,
            ),
            notices.artifact_ready(job.id, run.id, artifact["name"]),
        ],
    }


def _unserved(held: HeldRun, serving_name: str | None) -> str | None:
    dataset = held.assignment.dataset
    is_trial = dataset is not None and dataset.name == TRIAL_NAME
    if serving_name is not None or is_trial or not held.services.settings.serve_adapters:
        return None
    return why_unserved(held.services.places, held.launch_ref.endpoint)


def _cancelled_notice(held: HeldRun, gpu_seconds: float) -> dict[str, Any]:
    return notices.job_cancelled(held.assignment.run.job_id, held.cost(gpu_seconds))


def _partial_points(held: HeldRun, ending: Ending) -> tuple[list[Point], int | None]:
    progress = held.progress
    if ending.result and ending.result.points:
        return ending.result.points, ending.result.summary.total_steps or (progress.total_steps if progress else None)
    return (progress.points, progress.total_steps) if progress else ([], None)


def _partial(held: HeldRun, ending: Ending) -> dict[str, Any]:
    """The part that the outcomes of all runs without an artifact have in common."""
    summary = ending.result.summary if ending.result else Summary()
    points, total_steps = _partial_points(held, ending)
    return _base(held, billed_seconds(held, summary), points, total_steps)


def _cancelled(held: HeldRun, ending: Ending) -> dict[str, Any]:
    base = _partial(held, ending)
    return {
        **base,
        "run_status": "cancelled",
        "job_status": "cancelled",
        "notices": base["notices_if_cancelled"],
    }


def _given_back(held: HeldRun, ending: Ending, failure: Failure) -> dict[str, Any]:
    """The outcome of a run that never began, for its dataset or for want of a GPU where it was: no failure counts, and
    no notice is sent."""
    attempt = held.assignment.run.attempt
    seconds = min(_DATASET_SECONDS * 2.0 ** min(attempt - 1, 16), _MAX_DATASET_SECONDS)
    return {
        **_partial(held, ending),
        "run_status": "failed",
        "job_status": "queued",
        "fault": None,
        "error_code": failure.code,
        "error_message": failure.message,
        "retry_after_seconds": seconds if failure.code == WAITING_FOR_DATASET else 0.0,
        "waiting_stage": failure.code if failure.code == WAITING_FOR_DATASET else "waiting_for_gpu",
        "notices": [],
    }


def _failure(held: HeldRun, ending: Ending, failure: Failure) -> dict[str, Any]:
    if failure.code in {WAITING_FOR_DATASET, NO_GPU_THERE.code}:
        return _given_back(held, ending, failure)
    run = held.assignment.run
    seconds = retry_after(
        failure,
        transient_failures=run.transient_failures,
        infrastructure_failures=run.infrastructure_failures,
        limits=held.services.retry_limits,
    )
    outcome: dict[str, Any] = {
        **_partial(held, ending),
        "run_status": "lost" if failure.code in {"gpu_lost", "gpu_silent"} else "failed",
        "fault": str(failure.fault),
        "error_code": str(failure.code),
        "blame": blame_of(held, failure, ending.result.stage if ending.result else None),
    }
    # A training may fail before any poll has seen it start.
    started = [started_notice(held)] if held.news.checked_in_at else []
    if seconds is None:
        # Runs that were given back without a fault are no attempts.
        attempts = run.transient_failures + run.infrastructure_failures + 1
        message = exhausted(failure, attempts).message
        ended = {"job_status": "failed", "error_message": message}
        return {**outcome, **ended, "notices": [*started, notices.job_failed(run.job_id, message)]}
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


def _note_refusal(held: HeldRun, ending: Ending, failure: Failure) -> None:
    """Remember what the storage refused, so that the job is not launched again before the storage takes it."""
    run, error = held.assignment.run, ending.result.error if ending.result else None
    log.error("the storage refused an adapter", action=Action.STORAGE_REFUSED, problem=failure.message)
    held.services.artifacts_bucket.note_refusal(run.job_id, error.too_many_bytes if error else None)
