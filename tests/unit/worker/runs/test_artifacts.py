"""Paths of a run's files, the description of a model, and what is refused without calling the storage."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from lora_contract.application import Application
from lora_contract.evaluation import Comparison, Evaluation, Measure
from lora_contract.protocol import FinalMetrics, Summary
from lora_worker.database.measured import Measured
from lora_worker.database.rows import Dataset, Job, Run
from lora_worker.launchers.places import Place, Places
from lora_worker.runs.rows.artifacts import artifact_name, notes_for_user, why_unserved
from lora_worker.runs.rows.improvement import brought_sentences, improvement_sentence
from lora_worker.runs.rows.notices import job_completed
from lora_worker.runs.rows.report_rows import final_columns
from lora_worker.storage.artifact_paths import ArtifactPaths
from tests.scripted import FakeLauncher
from tests.unit.worker.runs.comparisons import APPLICATION, compared, evaluated


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
    message = job_completed(uuid4(), "Calm money", 1.5, notes=shown)["message"]
    assert message.startswith(f"Training on “Calm money” is complete. It cost $1.50. {notes[0]} word")
    assert len(message) <= 1000


def brought(evaluation: Evaluation | None, application: Application | None = None, name: str | None = None) -> str:
    told = Measured(evaluation=evaluation, application=application, serving_name=name)
    message = job_completed(uuid4(), "Calm money", 1.5, brought_sentences(told), ["A note."])["message"]
    assert message.endswith(" A note.")
    return str(message.removesuffix(" A note.").removeprefix("Training on “Calm money” is complete. It cost $1.50."))


def test_message_of_a_complete_training_says_what_got_better() -> None:
    assert brought(evaluated(compared()), Application.model_validate(APPLICATION), "adapter-0123abcd") == (
        " On 34 held-out conversations the loss fell from 2.31 to 1.62 (95 % interval of the gain: 0.55 to 0.83), and"
        " the adapter predicts 61 % of their tokens right, the base 48 %. A fresh base model took the published adapter"
        " in 84 modules, and 9 of 10 answers differ from the base's. It is called by the name adapter-0123abcd."
    )


@pytest.mark.parametrize(
    ("held_out", "words"),
    [
        (compared(2.0, 1.98, (-0.01, 0.05)),
         "On 34 held-out conversations nothing got better for certain: the loss fell from 2 to 1.98 (95 % interval of"
         " the gain: -0.01 to 0.05)."),
        (compared(2.0, 2.5, (-0.8, -0.2)),
         "On 34 held-out conversations nothing got better: the loss rose from 2 to 2.5 (95 % interval of the gain: -0.8"
         " to -0.2)."),
        (compared(2.0, 2.0, (-0.1, 0.1)),
         "On 34 held-out conversations nothing got better: the loss stayed at 2 (95 % interval of the gain: -0.1 to"
         " 0.1)."),
        (compared(2.0, 1.0, None),
         "On 1 held-out conversation the loss fell from 2 to 1; so few prove nothing."),
        (None, "No conversation was held out, so it is not known whether its answers are better than the base's."),
    ],
)  # fmt: skip
def test_message_says_where_nothing_got_better_or_nobody_knows(held_out: Comparison | None, words: str) -> None:
    assert brought(evaluated(held_out)) == f" {words}"


@pytest.mark.parametrize(
    ("accuracy", "held_out", "words"),
    [
        (0.93, compared(2.0, 2.25, (-0.4, -0.1)),
         "It rates 93 % of the answers rightly (50 % by chance). On 34 held-out conversations the loss of good answers"
         " rose from 2 to 2.25."),
        (0.93, None, "It rates 93 % of the answers rightly (50 % by chance)."),
        (None, None, None),
    ],
)  # fmt: skip
def test_preference_method_is_judged_by_what_it_rates_rightly(
    accuracy: float | None, held_out: Comparison | None, words: str | None
) -> None:
    told = Measured(evaluation=evaluated(held_out), method="dpo", reward_accuracy=accuracy)
    assert improvement_sentence(told) == words


def test_trainer_that_compares_nothing_leaves_the_message_as_it_was() -> None:
    assert brought(None) == ""


def test_largest_figures_fit_the_message_with_room_for_notes() -> None:
    most = {**APPLICATION, "modules": 2_000_000_000, "prompts": 2_000_000_000, "differing": 2_000_000_000}
    extreme = Comparison(
        base=Measure(loss=999_999.9, token_accuracy=1, tokens=2**53),
        tuned=Measure(loss=123_456.789, token_accuracy=0.123456, tokens=2**53),
        conversations=2**53, gain=876_543.1, gain_low=876_543.1, gain_high=876_543.1,
    )  # fmt: skip
    assert len(brought(evaluated(extreme), Application.model_validate(most), "adapter-" + "x" * 100)) < 600


def test_trainer_that_ignored_the_earlier_adapter_is_told_of() -> None:
    job = Job(id=uuid4(), user_id=uuid4(), hyperparameters={"epochs": 1}, gpu_config={})
    asked = {"init_adapter": {"id": "a"}}
    (note,) = notes_for_user(Summary(), job, asked)
    assert note.startswith("The training began with a new adapter")
    assert notes_for_user(Summary(init_adapter="a"), job, asked) == notes_for_user(Summary(), job, {}) == []


@pytest.mark.parametrize(
    ("names", "at", "words"),
    [
        ("rm", "r", None),
        ("rm", "m", "it was trained at The cloud, where none is served from"),
        ("m", "m", "nothing that is trained at The cloud is served from there"),
    ],
)
def test_adapter_that_nobody_serves_has_a_note(names: str, at: str, words: str | None) -> None:
    made = {}
    for name in names:
        launcher: Any = FakeLauncher()
        launcher.endpoint, launcher.takes_errands = name, name == "r"
        made[name] = Place(name, launcher, serves=name == names[0])
    reason = why_unserved(Places(*made.values()), at)
    job = Job(id=uuid4(), user_id=uuid4(), hyperparameters={}, gpu_config={})
    notes = notes_for_user(Summary(), job, unserved=reason)
    assert len(notes) == (words is not None)
    if words is not None:
        assert words in notes[0]
        assert "Download it" in notes[0]


def test_rewards_are_current_metrics_of_a_preference_run() -> None:
    metrics = FinalMetrics(final_training_loss=0.4, final_reward_margin=0.0, final_reward_accuracy=0.9)
    shown = final_columns(metrics, Summary(), [])["current_metrics"]
    assert shown == {"training_loss": 0.4, "reward_margin": 0.0, "reward_accuracy": 0.9}


def test_unused_hyperparameter_is_noted_on_the_model() -> None:
    job = Job(id=uuid4(), user_id=uuid4(), hyperparameters={"optimizer": "lion"}, gpu_config={})
    assert notes_for_user(Summary(notes=["More."]), job) == [
        "hyperparameters: 'optimizer' changed nothing; this service knows no such key.", "More.",
    ]  # fmt: skip
