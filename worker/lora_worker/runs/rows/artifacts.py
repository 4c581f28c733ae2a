"""Describes the artifact of a finished run for the application's pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from lora_contract.protocol import MANIFEST_NAME, Manifest, Point, Summary
from lora_contract.serving import is_name_of
from lora_contract.words import shorten
from lora_worker.database.job_keys import unread_keys
from lora_worker.database.measured import Measured
from lora_worker.database.rows import Assignment, Dataset, Job
from lora_worker.launchers.places import Places
from lora_worker.runs.rows.figures import quality_keys
from lora_worker.runs.rows.quality import QualityReport, perplexity_of
from lora_worker.storage.artifact_paths import ArtifactPaths

_NOTES_KEPT, _NOTE_LENGTH = 30, 600
_NAME_LENGTH = 200
_FORGOTTEN_ADAPTER = (
    "The training began with a new adapter and not with the one that init_adapter names: the trainer's image is from "
    "before that setting. Please report it to support."
)


@dataclass(frozen=True, slots=True)
class Description:
    """What a row of `model_artifacts` says of a run beside what is in the manifest. `now` is the time of settling."""

    quality: QualityReport
    gpu_seconds: float
    now: datetime
    serving_name: str | None = None
    """The name by which an endpoint serves the adapter."""
    notes: Sequence[str] = ()
    """What the user should know of the training, as `notes_for_user` returns it."""


def artifact_name(dataset: Dataset | None, now: datetime, job_id: UUID) -> str:
    """`<dataset> - <date> (<first of the job's id>)`, within the column's 200 characters; no two jobs share one."""
    end = f" - {now.date().isoformat()} ({str(job_id)[:8]})"
    name = dataset.name if dataset else "LoRA adapter"
    return f"{name[: _NAME_LENGTH - len(end)]}{end}"


def describe_artifact(assignment: Assignment, manifest: Manifest, description: Description) -> dict[str, Any]:
    """The columns of `model_artifacts` that the application's pages read (app contract 1.4).

    Version and parent are decided by the database when it writes the row: only it knows which models exist.
    """
    job, metrics, summary, paths = assignment.job, manifest.metrics, manifest.summary, ArtifactPaths.of(assignment.run)
    assert job is not None
    quality = description.quality
    hours = (summary.train_seconds or description.gpu_seconds) / 3600
    return {
        "name": artifact_name(assignment.dataset, description.now, job.id),
        "description": f"LoRA adapter for {summary.base_model}" if summary.base_model else None,
        "quality_metrics": {
            "overall_score": quality.overall_score,
            "convergence_quality": quality.convergence_quality,
            "final_training_loss": metrics.final_training_loss,
            "final_validation_loss": metrics.final_validation_loss,
            "perplexity": perplexity_of(summary.method, metrics),
            "loss_reduction_percent": quality.loss_reduction_percent,
            **quality_keys(manifest.evaluation),
            **quality.rewards,
        },
        "training_summary": {
            "epochs_completed": summary.epochs_completed or job.total_epochs,
            "total_steps": summary.total_steps or job.total_steps,
            "final_loss": metrics.final_training_loss,
            "training_duration_hours": round(hours, 4),
            "method": summary.method or "sft",
            "init_adapter": summary.init_adapter,
            "base_model": summary.base_model,
            "base_revision": summary.base_revision,
            "dataset_sha256": summary.dataset_sha256,
            "training_examples": summary.training_examples,
            "trainable_parameters": summary.trainable_parameters,
            "quantization": summary.quantization,
            "serving_name": description.serving_name,
            "notes": list(description.notes),
        },
        "configuration": {
            "preset_id": job.preset_id,
            "hyperparameters": job.hyperparameters,
            "gpu_config": job.gpu_config,
        },
        "artifacts": {
            **{file.name: paths.final(file.path) for file in manifest.files},
            MANIFEST_NAME: paths.final(MANIFEST_NAME),
        },
    }


def why_unserved(places: Places, endpoint: str | None) -> str | None:
    """Why an adapter that was trained at an endpoint can't be called by a name, and what to do; None where it can."""
    place = places.at(endpoint)
    if place is not None and place.keeps_served_adapters:
        return None
    title = places.guide_of(endpoint).title
    if places.serving is None:
        return (
            f"The adapter can't be called by a name: nothing that is trained at {title} is served from there. Download "
            "it and serve it yourself, or ask support for an endpoint that serves adapters."
        )
    return (
        f"The adapter can't be called by a name: it was trained at {title}, where none is served from. Download it, or "
        "ask support to have such trainings sent to an endpoint that serves adapters, and train again."
    )


def brought_by(manifest: Manifest, job_id: UUID, quality: QualityReport) -> Measured:
    """Return what the training has brought, as it is kept with the run.

    A container may claim any name for its adapter: one that is not its own job's is left out.
    """
    name = manifest.serving.name if manifest.serving is not None else None
    is_own = name is not None and is_name_of(name, job_id)
    return Measured(
        evaluation=manifest.evaluation,
        application=manifest.application,
        serving_name=name if is_own else None,
        method=manifest.summary.method,
        dataset_sha256=manifest.summary.dataset_sha256,
        reward_accuracy=quality.rewards.get("reward_accuracy"),
    )


def notes_for_user(
    summary: Summary, job: Job, launched_with: Mapping[str, Any] | None = None, *, unserved: str | None = None
) -> list[str]:
    """The notes for the user on what was left out or changed, bounded in number and length for row and page.

    `unserved` says why nobody answers with the adapter by a name (`why_unserved`).
    """
    asked = (launched_with or {}).get("init_adapter")
    forgotten = [_FORGOTTEN_ADAPTER] if asked and not summary.init_adapter else []
    own = [*forgotten, *([unserved] if unserved else [])]
    notes = [*own, *unread_keys(job.hyperparameters, job.gpu_config), *summary.notes]
    return [shorten(note, _NOTE_LENGTH) for note in notes[:_NOTES_KEPT]]


def curve_of(manifest: Manifest, progress_points: list[Point]) -> list[Point]:
    """The run's curve: the manifest's own, else what was reported while it ran."""
    return manifest.points or progress_points
