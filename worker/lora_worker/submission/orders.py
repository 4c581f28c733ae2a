"""Queues a job for a file on this machine: dataset and job get the rows that the application writes.

A dataset's id follows from its owner, its content and the name that was chosen for it. So a command that was broken off
is finished by the next one: the file is uploaded to the same place, and both rows are written in one transaction. A
file that was uploaded before is not uploaded again.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4, uuid5

from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_contract.object_names import storable
from lora_worker.database.rows import Job, parse_gpu_config, parse_hyperparameters
from lora_worker.datasets.columns import MAX_INT, counted_columns
from lora_worker.datasets.placing import preferred_place
from lora_worker.datasets.preflight import (
    check_base_model,
    check_estimate,
    check_gpu,
    check_quantization,
    current_terms,
    make_policy,
)
from lora_worker.errors import ArgumentError, PreflightError, ServiceError, ServiceUnavailableError
from lora_worker.money.billing import Rate
from lora_worker.services import Services
from lora_worker.submission.files import LocalDataset, read_dataset, upload_chunks
from lora_worker.submission.users import find_owner

_BUCKET = "lora-datasets"
_SPACE = UUID("6f3c1c0e-54a5-4b0d-9d0c-2f1b7c0f8a11")
"""The namespace of the ids of datasets that are uploaded here. Any fixed one will do."""
_MOST_NAME = 200


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be trained on, how, and for whom. None: the default of the worker."""

    file: Path
    hyperparameters: dict[str, Any]
    """Those that were chosen, with the application's short keys."""
    gpu: str | None = None
    name: str | None = None
    """The dataset's name, which the model gets, too; None: that of the file."""
    user: str | None = None
    """Id or mail address of the owner; None: the operator's own user."""


@dataclass(frozen=True, slots=True)
class Queued:
    """A job that waits in the queue."""

    job_id: UUID
    dataset_id: UUID
    user_id: UUID
    pairs: int
    tokens: int
    notes: tuple[str, ...]
    """What of the dataset is left out or changed."""


async def enqueue(services: Services, order: Order, say: Callable[[str], None] = lambda _: None) -> Queued:
    """Check file and settings, store the file, and queue the job; `say` is told what is done.

    Raises:
        ArgumentError: the file, a setting or the user is wrong; nothing was stored.
        ServiceError: Supabase did not answer, or refused.
    """
    chosen, gpu = _check_settings(order, services)
    dataset = await asyncio.to_thread(read_dataset, order.file, chosen)
    await _check_cost(chosen, gpu, dataset, services)
    await _check_size(services, dataset)
    say(f"{dataset.path.name}: {dataset.survey.answers:,} pairs, {dataset.survey.tokens:,} tokens")
    owner = await find_owner(services, order.user)
    known_by = f"{owner} {dataset.survey.sha256}" + (f" {order.name}" if order.name else "")
    for dataset_id in (uuid5(_SPACE, known_by), uuid4()):
        columns = _dataset_columns(dataset, dataset_id, owner, order.name)
        uploaded = await _upload(services, dataset, columns["storage_path"], say)
        job = _job_columns(order, owner, dataset_id, chosen, gpu, dataset)
        if await _submit(services, columns, job, uploaded=uploaded):
            notes = tuple(note.text for note in dataset.survey.notes if not note.harmless)
            survey = dataset.survey
            return Queued(UUID(job["id"]), dataset_id, owner, survey.answers, survey.tokens, notes)
        # Its owner has deleted the same dataset before: this one is another.
    raise ArgumentError(f"the user {owner} was deleted meanwhile: name another with --user")


def _check_settings(order: Order, services: Services) -> tuple[Hyperparameters, GpuConfig]:
    """Make the checks of the worker's preflight that need no dataset."""
    settings = services.settings
    gpu = {"type": order.gpu or settings.endpoint_gpu_type or GpuConfig().type, "count": 1}
    job = Job(id=uuid4(), user_id=uuid4(), hyperparameters=order.hyperparameters, gpu_config=gpu)
    try:
        chosen = parse_hyperparameters(job, default_base_model=settings.default_base_model)
        gpu_config = parse_gpu_config(job)
        check_base_model(chosen, settings.base_models)
        asked = check_gpu(gpu_config, services.prices)
        given = check_gpu(gpu_config, services.prices, preferred_place(chosen, gpu_config, services))
        check_quantization(chosen, given, gpu_config)
    except PreflightError as error:
        raise ArgumentError(str(error)) from None
    if asked.type != given.type and not services.routes:
        raise ArgumentError(
            f"--gpu: this worker's endpoint has {given.type} (LORA_WORKER_ENDPOINT_GPU_TYPE), not {asked.type}: leave "
            "--gpu out"
        )
    return chosen, gpu_config


async def _check_cost(chosen: Hyperparameters, gpu: GpuConfig, dataset: LocalDataset, services: Services) -> None:
    settings = services.settings
    try:
        place = preferred_place(chosen, gpu, services)
        price = check_gpu(gpu, services.prices, place)
        make_policy(
            Rate.at(price, gpu_count=place.gpu_count, max_cost=settings.max_cost_per_job),
            spent_cost=0,
            spent_seconds=0,
            max_run_seconds=settings.max_run_seconds,
            queue_allowance_seconds=settings.queue_allowance_seconds,
        )
        terms = await current_terms(services, chosen.base_model, price, place)
        check_estimate(chosen, dataset.survey, gpu.type, terms, gpus=gpu.count)
    except PreflightError as error:
        raise ArgumentError(str(error)) from None


async def _check_size(services: Services, dataset: LocalDataset) -> None:
    buckets = {bucket["name"]: bucket for bucket in await services.storage.buckets()}
    if _BUCKET not in buckets:
        raise ArgumentError(f"the bucket {_BUCKET} is missing: run `lora-worker migrate`")
    limit = buckets[_BUCKET].get("file_size_limit")
    if isinstance(limit, int) and dataset.survey.bytes > limit:
        raise ArgumentError(
            f"{dataset.path.name} has {dataset.survey.bytes / 2**20:.0f} MB, and the bucket {_BUCKET} takes "
            f"{limit / 2**20:.0f}: split it, or raise the bucket's limit"
        )


def _dataset_columns(dataset: LocalDataset, dataset_id: UUID, owner: UUID, name: str | None) -> dict[str, Any]:
    return {
        "id": str(dataset_id),
        "name": (name or dataset.path.stem)[:_MOST_NAME],
        "storage_bucket": _BUCKET,
        "storage_path": f"{owner}/{dataset_id}/{storable(dataset.path.name)}",
        "file_name": dataset.path.name[:255],
        "file_size": dataset.survey.bytes,
        **counted_columns(dataset.survey),
    }


def _job_columns(
    order: Order, owner: UUID, dataset_id: UUID, chosen: Hyperparameters, gpu: GpuConfig, dataset: LocalDataset
) -> dict[str, Any]:
    steps = math.ceil(dataset.survey.answers / chosen.batch_size) * chosen.epochs
    return {
        "id": str(uuid4()),
        "user_id": str(owner),
        "dataset_id": str(dataset_id),
        "preset_id": "custom",
        # As the application writes them: what the user chose, and the base model beside it.
        "hyperparameters": {
            "learning_rate": chosen.learning_rate,
            "batch_size": chosen.batch_size,
            "epochs": chosen.epochs,
            "rank": chosen.rank,
            "base_model": chosen.base_model,
            **order.hyperparameters,
        },
        "gpu_config": {"type": gpu.type, "count": gpu.count},
        "total_epochs": chosen.epochs,
        "total_steps": min(steps, MAX_INT),
    }


async def _upload(services: Services, dataset: LocalDataset, path: str, say: Callable[[str], None]) -> bool:
    """Store the file unless it is there; returns whether it was stored now."""
    if await services.storage.size(_BUCKET, path) == dataset.survey.bytes:
        say("the file is stored already")
        return False
    chunks, count = upload_chunks(dataset), dataset.survey.bytes
    try:
        await services.storage.write_stream(_BUCKET, path, chunks, content_type=dataset.content_type, byte_count=count)
    except ArgumentError:
        # Storage may have stored the changed file by now.
        await _remove(services, path, uploaded=True)
        raise
    say(f"stored as {_BUCKET}/{path}")
    return True


async def _submit(services: Services, columns: dict[str, Any], job: dict[str, Any], *, uploaded: bool) -> bool:
    """Write both rows; False if the dataset's id can't be used. A file without a row is removed again."""
    try:
        if await services.queue.submit_training_job(columns, job) is not None:
            return True
    except ServiceUnavailableError:
        # The rows may have been written. If not, the next command finds the file.
        raise
    except ServiceError:
        await _remove(services, columns["storage_path"], uploaded=uploaded)
        raise
    await _remove(services, columns["storage_path"], uploaded=uploaded)
    return False


async def _remove(services: Services, path: str, *, uploaded: bool) -> None:
    if uploaded:
        with contextlib.suppress(ServiceError):
            await services.storage.remove(_BUCKET, [path])
