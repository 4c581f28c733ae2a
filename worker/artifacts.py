"""Artifacts: find the manifest, verify what it lists, describe the result for the application."""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, NoReturn
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from pydantic import ValidationError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from trainer.connections import why_unreachable
from trainer.protocol import (
    MANIFEST_NAME,
    ArtifactFile,
    FinalMetrics,
    Manifest,
    Point,
    Summary,
)
from worker.errors import ArtifactError, ServiceRefusedError, ServiceUnavailableError
from worker.jobs import Assignment, Dataset, Run
from worker.outcome import LegacyResult, QualityReport
from worker.storage import Storage

_MAX_MANIFEST_BYTES = 10_000_000
_NAME_LENGTH = 200
_COPY_ATTEMPTS = 3
_ARCHIVE_NAME = "adapter.tar.gz"


@dataclass(frozen=True, slots=True)
class Places:
    """Where a run's files go in the bucket."""

    prefix: str
    """The run's own folder; the run's id is the artifact's id."""
    archive: str | None = None
    """Where the newer queue's readers look for the whole adapter as one file. It is the job's, not the run's:
    each attempt writes over the former's."""

    @classmethod
    def of(cls, run: Run) -> Places:
        """The places of a run."""
        archive = f"adapters/{run.job_id}.tar.gz" if run.queue == "pipeline_training_jobs" else None
        return cls(f"{run.user_id}/{run.id}/", archive)

    @property
    def archive_name(self) -> str | None:
        """The archive's path in the manifest; None where nobody reads one."""
        return _ARCHIVE_NAME if self.archive else None

    def at(self, path: str) -> str:
        """Where the file lies that the manifest lists as `path`."""
        return self.archive if self.archive and path == _ARCHIVE_NAME else self.prefix + path


async def find_manifest(storage: Storage, bucket: str, places: Places, *, run_id: UUID) -> Manifest | None:
    """The manifest of a run; None while there is none.

    Raises:
        ArtifactError: it is there and is not a manifest of this run.
        ServiceError: the storage can't be read.
    """
    try:
        content = await storage.read(bucket, places.at(MANIFEST_NAME), max_bytes=_MAX_MANIFEST_BYTES)
    except ServiceRefusedError as error:
        if error.status != 413:
            raise
        raise ArtifactError(f"The artifact's manifest is larger than {_MAX_MANIFEST_BYTES} bytes.") from None
    if content is None:
        return None
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError:
        raise ArtifactError("The artifact's manifest is damaged.") from None
    if manifest.run_id != str(run_id) or not manifest.files:
        raise ArtifactError("The artifact's manifest belongs to another run or lists no file.")
    return manifest


async def verify(storage: Storage, bucket: str, places: Places, manifest: Manifest, *, sha256_max_bytes: int) -> None:
    """Check that every file of the manifest is there with its size and, up to a size, its sha256.

    So is the archive, where the job's queue wants one.

    Raises:
        ArtifactError: names the first file that is not as listed.
        ServiceError: the storage can't be read.
    """
    if places.archive_name not in {None, *(file.path for file in manifest.files)}:
        raise ArtifactError("The training left no archive of its adapter.")
    for file in manifest.files:
        if file.bytes > sha256_max_bytes:
            size = await storage.size(bucket, places.at(file.path))
        else:
            size, digest = await _measure(storage, bucket, places.at(file.path))
            if size is not None and digest != file.sha256:
                raise ArtifactError(f"{file.name} in the storage is not the file that the training saved.")
        if size is None:
            raise ArtifactError(f"{file.name} is missing in the storage.")
        if size != file.bytes:
            raise ArtifactError(f"{file.name} has {size} bytes in the storage instead of {file.bytes}.")


async def _measure(storage: Storage, bucket: str, path: str) -> tuple[int | None, str]:
    from worker.errors import ObjectMissingError

    digest, size = hashlib.sha256(), 0
    try:
        async with storage.stream(bucket, path) as chunks:
            async for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
    except ObjectMissingError:
        return None, ""
    return size, digest.hexdigest()


async def copy_legacy(
    legacy: LegacyResult,
    storage: Storage,
    bucket: str,
    places: Places,
    *,
    run_id: UUID,
    job_id: UUID,
    http: httpx.AsyncClient,
) -> Manifest:
    """Copy the files of an earlier trainer into the bucket, all or nothing, and write the manifest last.

    Raises:
        ArtifactError: a URL is not https, or a file can't be had.
        ServiceError: the storage does not take them.
    """
    files = [
        await _copy_file(name, url, storage, bucket, places.prefix, http=http)
        for name, url in sorted(legacy.files.items())
    ]
    loss = legacy.metadata.get("final_loss")
    steps = legacy.metadata.get("steps_completed")
    manifest = Manifest(
        job_id=str(job_id),
        run_id=str(run_id),
        files=files,
        metrics=FinalMetrics(final_training_loss=loss if isinstance(loss, int | float) else None),
        summary=Summary(
            base_model=str(legacy.metadata["base_model"]) if legacy.metadata.get("base_model") else None,
            total_steps=steps if isinstance(steps, int) and steps > 0 else None,
        ),
    )
    await storage.write(
        bucket, places.at(MANIFEST_NAME), manifest.model_dump_json().encode(), content_type="application/json"
    )
    return manifest


async def _copy_file(
    name: str, url: str, storage: Storage, bucket: str, prefix: str, *, http: httpx.AsyncClient
) -> ArtifactFile:
    path = PurePosixPath(name).name
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in {"127.0.0.1", "localhost"}:
        raise ArtifactError(f"The trainer gave no https address for {path}.")
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(_SourceBrokeOffError),
        stop=stop_after_attempt(_COPY_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.3, max=3),
        # For ever, it would hold the run, and the job would neither end nor be tried again.
        retry_error_callback=_give_up,
    ):
        with attempt:
            target = await storage.sign_upload(bucket, prefix + path)
            size, sha256 = await _stream_over(url, target, path, http)
    return ArtifactFile(name=path, path=path, bytes=size, sha256=sha256)


class _SourceBrokeOffError(Exception):
    """The trainer's address stopped answering in the middle; its text is a sentence."""


def _give_up(state: RetryCallState) -> NoReturn:
    raise ArtifactError(str(state.outcome.exception() if state.outcome else "")) from None


async def _stream_over(url: str, target: str, path: str, http: httpx.AsyncClient) -> tuple[int, str]:
    """Size and sha256 of what went from one URL to the other."""
    digest, size = hashlib.sha256(), 0

    async def read(source: httpx.Response) -> AsyncIterator[bytes]:
        nonlocal size
        try:
            async for chunk in source.aiter_bytes(1 << 20):
                digest.update(chunk)
                size += len(chunk)
                yield chunk
        except httpx.HTTPError:
            raise _SourceBrokeOffError(f"{path} broke off while it was fetched from the trainer.") from None

    try:
        async with http.stream("GET", url, follow_redirects=True) as source:
            if source.status_code != 200:
                raise _SourceBrokeOffError(f"{path} could not be fetched from the trainer ({source.status_code}).")
            content = read(source)
            answer = await http.put(target, content=content, headers={"content-type": "application/octet-stream"})
            answer.raise_for_status()
    except httpx.HTTPError as error:
        raise ServiceUnavailableError(
            "Supabase Storage", f"{path} could not be stored: {why_unreachable(error)}"
        ) from None
    return size, digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Description:
    """What a `model_artifacts` row says of a run, beside the manifest."""

    quality: QualityReport
    gpu_seconds: float
    now: datetime


def artifact_name(dataset: Dataset | None, now: datetime) -> str:
    """`<dataset> - <date>`, cut to the column's 200 characters."""
    date = now.date().isoformat()
    name = dataset.name if dataset else "LoRA adapter"
    return f"{name[: _NAME_LENGTH - len(date) - 3]} - {date}"


def describe_artifact(assignment: Assignment, manifest: Manifest, description: Description) -> dict[str, Any]:
    """The columns of `model_artifacts` that the application's pages read (app contract 1.4).

    Version and parent are decided where the row is written: only there is it known which models there are.
    """
    job, metrics, summary, places = assignment.job, manifest.metrics, manifest.summary, Places.of(assignment.run)
    assert job is not None
    quality = description.quality
    validation = metrics.final_validation_loss
    hours = (summary.train_seconds or description.gpu_seconds) / 3600
    return {
        "name": artifact_name(assignment.dataset, description.now),
        "description": f"LoRA adapter for {summary.base_model}" if summary.base_model else None,
        "quality_metrics": {
            "overall_score": quality.overall_score,
            "convergence_quality": quality.convergence_quality,
            "final_training_loss": metrics.final_training_loss,
            "final_validation_loss": validation,
            "perplexity": math.exp(validation) if validation is not None and validation < 50 else None,
            "loss_reduction_percent": quality.loss_reduction_percent,
        },
        "training_summary": {
            "epochs_completed": summary.epochs_completed or job.total_epochs,
            "total_steps": summary.total_steps or job.total_steps,
            "final_loss": metrics.final_training_loss,
            "training_duration_hours": round(hours, 4),
            "base_model": summary.base_model,
            "base_revision": summary.base_revision,
            "dataset_sha256": summary.dataset_sha256,
            "training_examples": summary.training_examples,
            "trainable_parameters": summary.trainable_parameters,
            "notes": summary.notes,
        },
        "configuration": {
            "preset_id": job.preset_id,
            "hyperparameters": job.hyperparameters,
            "gpu_config": job.gpu_config,
        },
        "artifacts": {
            **{file.name: places.at(file.path) for file in manifest.files},
            MANIFEST_NAME: places.at(MANIFEST_NAME),
        },
    }


def curve_of(manifest: Manifest, progress_points: list[Point]) -> list[Point]:
    """The run's curve: the manifest's own, else what was reported while it ran."""
    return manifest.points or progress_points
