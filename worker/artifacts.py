"""Artifacts: find the manifest, verify what it lists, describe the result for the application."""

from __future__ import annotations

import asyncio
import hashlib
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from pydantic import ValidationError

from trainer.protocol import (
    MANIFEST_NAME,
    ArtifactFile,
    FinalMetrics,
    Manifest,
    Point,
    Summary,
)
from worker.errors import ArtifactError, ServiceUnavailableError
from worker.jobs import Assignment, Dataset
from worker.outcome import LegacyResult, QualityReport
from worker.storage import Storage

_MAX_MANIFEST_BYTES = 10_000_000
_NAME_LENGTH = 200


def prefix_of(user_id: UUID, run_id: UUID) -> str:
    """Where a run's files go; the run's id is the artifact's id."""
    return f"{user_id}/{run_id}/"


async def find_manifest(storage: Storage, bucket: str, prefix: str, *, run_id: UUID) -> Manifest | None:
    """The manifest of a run; None while there is none.

    Raises:
        ArtifactError: it is there and is not a manifest of this run.
        ServiceError: the storage can't be read.
    """
    content = await storage.read(bucket, prefix + MANIFEST_NAME, max_bytes=_MAX_MANIFEST_BYTES)
    if content is None:
        return None
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError:
        raise ArtifactError("The artifact's manifest is damaged.") from None
    if manifest.run_id != str(run_id) or not manifest.files:
        raise ArtifactError("The artifact's manifest belongs to another run or lists no file.")
    return manifest


async def verify(storage: Storage, bucket: str, prefix: str, manifest: Manifest, *, sha256_max_bytes: int) -> None:
    """Check that every file of the manifest is there with its size and, up to a size, its sha256.

    Raises:
        ArtifactError: names the first file that is not as listed.
        ServiceError: the storage can't be read.
    """
    for file in manifest.files:
        if file.bytes > sha256_max_bytes:
            size = await storage.size(bucket, prefix + file.path)
        else:
            size, digest = await _measure(storage, bucket, prefix + file.path)
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
    prefix: str,
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
        await _copy_file(name, url, storage, bucket, prefix, http=http) for name, url in sorted(legacy.files.items())
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
        bucket, prefix + MANIFEST_NAME, manifest.model_dump_json().encode(), content_type="application/json"
    )
    return manifest


async def _copy_file(
    name: str, url: str, storage: Storage, bucket: str, prefix: str, *, http: httpx.AsyncClient
) -> ArtifactFile:
    path = PurePosixPath(name).name
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in {"127.0.0.1", "localhost"}:
        raise ArtifactError(f"The trainer gave no https address for {path}.")
    digest, size = hashlib.sha256(), 0
    target = await storage.sign_upload(bucket, prefix + path)
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=4)

    async def chunks() -> Any:
        while (chunk := await queue.get()) is not None:
            yield chunk

    try:
        async with http.stream("GET", url, follow_redirects=True) as source:
            if source.status_code != 200:
                raise ArtifactError(f"{path} could not be fetched from the trainer ({source.status_code}).")
            upload = asyncio.create_task(
                http.put(target, content=chunks(), headers={"content-type": "application/octet-stream"})
            )
            async for chunk in source.aiter_bytes(1 << 20):
                digest.update(chunk)
                size += len(chunk)
                await queue.put(chunk)
            await queue.put(None)
            (await upload).raise_for_status()
    except httpx.HTTPError as error:
        raise ServiceUnavailableError("the trainer's storage", f"{path} broke off ({type(error).__name__})") from None
    return ArtifactFile(name=path, path=path, bytes=size, sha256=digest.hexdigest())


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
    job, metrics, summary = assignment.job, manifest.metrics, manifest.summary
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
            **{file.name: prefix_of(job.user_id, assignment.run.id) + file.path for file in manifest.files},
            MANIFEST_NAME: prefix_of(job.user_id, assignment.run.id) + MANIFEST_NAME,
        },
    }


def curve_of(manifest: Manifest, progress_points: list[Point]) -> list[Point]:
    """The run's curve: the manifest's own, else what was reported while it ran."""
    return manifest.points or progress_points
