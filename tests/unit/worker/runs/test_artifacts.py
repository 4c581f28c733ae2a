"""Paths of a run's files, the description of a model, and what is refused without calling the storage."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from lora_contract.protocol import FinalMetrics, Summary
from lora_worker.database.rows import Dataset, Job, Run
from lora_worker.runs.rows.artifacts import artifact_name, notes_for_user
from lora_worker.runs.rows.notices import job_completed
from lora_worker.runs.rows.report_rows import final_columns
from lora_worker.storage.artifact_paths import ArtifactPaths


def run_of(queue: str) -> Run:
    ids = {name: uuid4() for name in ("id", "job_id", "user_id", "lease_token")}
    return Run.model_validate(
        {**ids, "queue": queue, "attempt": 1, "status": "running", "created_at": datetime.now(UTC)}
    )


def test_only_the_newer_queues_archive_is_outside_the_runs_folder() -> None:
    run = run_of("pipeline_training_jobs")
    artifact = ArtifactPaths.of(run)
    assert artifact.archive_name is not None
    assert artifact.final(artifact.archive_name) == f"adapters/{run.job_id}.tar.gz"
    for path in ("manifest.json", "adapter_config.json", f"sub/{artifact.archive_name}"):
        assert artifact.final(path) == f"{run.user_id}/{run.id}/{path}"


def test_older_queue_has_no_archive_outside_the_runs_folder() -> None:
    run = run_of("training_jobs")
    artifact = ArtifactPaths.of(run)
    assert artifact.archive_name is None
    assert artifact.final("adapter.tar.gz") == f"{run.user_id}/{run.id}/adapter.tar.gz"


def test_upload_paths_are_never_final_paths() -> None:
    for queue in ("training_jobs", "pipeline_training_jobs"):
        artifact = ArtifactPaths.of(run_of(queue))
        paths = ["manifest.json", "adapter.tar.gz", "sub/x"]
        assert {artifact.staged(path) for path in paths}.isdisjoint({artifact.final(path) for path in paths})
        assert all(artifact.staged(path).startswith("uploads/") for path in paths)


def test_training_time_is_whole_seconds_or_unknown() -> None:
    metrics = FinalMetrics(final_training_loss=0.5)
    columns = final_columns(metrics, Summary(train_seconds=89.6), [])
    assert (columns["final_loss"], columns["training_time_seconds"]) == (0.5, 90)
    assert final_columns(metrics, Summary(), [])["training_time_seconds"] is None


@pytest.mark.parametrize("length", [1, 187, 188, 200, 255])
@pytest.mark.fault(41)
def test_model_name_fits_its_column_and_has_an_iso_date(length: int) -> None:
    dataset, job_id = Dataset(id=uuid4(), name="x" * length, storage_path="p"), uuid4()
    name = artifact_name(dataset, datetime(2026, 11, 24, tzinfo=UTC), job_id)
    assert len(name) <= 200
    assert name.startswith("x")
    assert name.endswith(f" - 2026-11-24 ({str(job_id)[:8]})")


def test_models_of_the_same_dataset_and_day_have_different_names() -> None:
    dataset = Dataset(id=uuid4(), name="x" * 300, storage_path="p")
    assert len({artifact_name(dataset, datetime(2026, 11, 24, tzinfo=UTC), uuid4()) for _ in range(9)}) == 9


def test_notes_of_a_training_fit_its_row_and_notification() -> None:
    notes = ["Left out: 3 examples with weight 0, train false or loss false.", "word " * 1000, *["more"] * 1000]
    job = Job(id=uuid4(), user_id=uuid4(), hyperparameters={"epochs": 1}, gpu_config={})
    shown = notes_for_user(Summary(notes=notes), job)
    assert shown[0] == notes[0]
    assert (len(shown), max(map(len, shown))) == (30, 596)
    assert shown[1].endswith("word …")
    message = job_completed(uuid4(), "Calm money", 1.5, shown)["message"]
    assert message.startswith(f"Training on “Calm money” is complete. It cost $1.50. {notes[0]} word")
    assert len(message) <= 600


def test_trainer_that_ignored_the_earlier_adapter_is_told_of() -> None:
    job = Job(id=uuid4(), user_id=uuid4(), hyperparameters={"epochs": 1}, gpu_config={})
    asked = {"init_adapter": {"id": "a"}}
    (note,) = notes_for_user(Summary(), job, asked)
    assert note.startswith("The training began with a new adapter")
    assert notes_for_user(Summary(init_adapter="a"), job, asked) == notes_for_user(Summary(), job, {}) == []


def test_rewards_are_current_metrics_of_a_preference_run() -> None:
    metrics = FinalMetrics(final_training_loss=0.4, final_reward_margin=0.0, final_reward_accuracy=0.9)
    shown = final_columns(metrics, Summary(), [])["current_metrics"]
    assert shown == {"training_loss": 0.4, "reward_margin": 0.0, "reward_accuracy": 0.9}


def test_unused_hyperparameter_is_noted_on_the_model() -> None:
    job = Job(id=uuid4(), user_id=uuid4(), hyperparameters={"optimizer": "lion"}, gpu_config={})
    assert notes_for_user(Summary(notes=["More."]), job) == [
        "hyperparameters: 'optimizer' changed nothing; this service knows no such key.", "More.",
    ]  # fmt: skip
