"""The texts of notifications: types, titles and links as the application's pages know them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from lora_contract.words import counted, shorten

_MAX_MESSAGE_CHARACTERS = 600
_MAX_COMPLETED_CHARACTERS = 1000
"""Of the message that says what a training has brought, before what was left out or changed."""


def _notice(kind: str, title: str, message: str, priority: str, url: str, **metadata: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "title": title,
        "message": message,
        "priority": priority,
        "action_url": url,
        "metadata": metadata,
    }


def _job_url(job_id: UUID) -> str:
    return f"/training/jobs/{job_id}"


def dataset_ready(dataset_id: UUID, name: str, pairs: int, skipped: int, notes: Sequence[str] = ()) -> dict[str, Any]:
    """The dataset can be trained on; `skipped` of its lines can't be used, `notes` say what else is left out."""
    text = f"“{name}” is ready for training: {counted(pairs, 'pair')}."
    if skipped:
        text += f" Left out: {counted(skipped, 'line')} that can't be used."
    text = shorten(" ".join([text, *notes]), _MAX_MESSAGE_CHARACTERS)
    return _notice("dataset_ready", "Dataset Ready", text, "medium", f"/datasets/{dataset_id}")


def dataset_failed(dataset_id: UUID, name: str, reason: str) -> dict[str, Any]:
    """The dataset can't be trained on; `reason` is the sentence of its `error_message`."""
    text = f"“{name}” can't be used: {reason}"
    return _notice("dataset_error", "Dataset Validation Failed", text, "high", f"/datasets/{dataset_id}")


def job_started(job_id: UUID, dataset: str, gpu_type: str, gpu_count: int) -> dict[str, Any]:
    """The GPU has begun."""
    text = f"Training on “{dataset}” has started on {gpu_count} × {gpu_type}."
    return _notice("job_started", "Training Started", text, "medium", _job_url(job_id), job_id=str(job_id))


def job_completed(
    job_id: UUID, dataset: str, cost: float, brought: Sequence[str] = (), notes: Sequence[str] = ()
) -> dict[str, Any]:
    """The training is complete.

    Args:
        job_id: the job.
        dataset: the name of its dataset.
        cost: in USD.
        brought: sentences on what got better (`runs.rows.improvement`).
        notes: sentences on what was left out or changed, which come last.
    """
    text = f"Training on “{dataset}” is complete. It cost ${cost:.2f}."
    text = shorten(" ".join([text, *brought, *notes]), _MAX_COMPLETED_CHARACTERS)
    return _notice(
        "job_completed", "Training Complete", text, "high", _job_url(job_id), job_id=str(job_id), final_cost=cost
    )


def artifact_ready(job_id: UUID, artifact_id: UUID, name: str) -> dict[str, Any]:
    """The adapter can be downloaded."""
    return _notice(
        "artifact_ready",
        "Model Ready for Download",
        f"“{name}” is ready for download.",
        "high",
        f"/models/{artifact_id}",
        artifact_id=str(artifact_id),
        job_id=str(job_id),
    )


def job_failed(job_id: UUID, reason: str) -> dict[str, Any]:
    """The job is over without a result; `reason` is the sentence of `error_message`."""
    return _notice("job_failed", "Training Failed", reason, "high", _job_url(job_id), job_id=str(job_id))


def job_cancelled(job_id: UUID, cost: float) -> dict[str, Any]:
    """The GPU has stopped; `cost` in USD."""
    text = f"The training was cancelled and its GPU has stopped. It cost ${cost:.2f}."
    return _notice("job_cancelled", "Job Cancelled", text, "medium", _job_url(job_id), job_id=str(job_id))


def job_requeued(job_id: UUID, run_id: UUID, reason: str, attempt: int) -> dict[str, Any]:
    """The job will be tried again; `attempt` is the number of the attempt that failed."""
    text = f"Attempt {attempt} ended early: {reason} It will be tried again by itself."
    return _notice(
        "job_requeued",
        "Training Will Be Retried",
        text,
        "low",
        _job_url(job_id),
        job_id=str(job_id),
        run_id=str(run_id),
    )
