"""What the application's pages read during and after real runs of every outcome.

All jobs run once, concurrently, while the test reads every page ten times a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sandbox.runpod import LocalRunPod
from sandbox.standin import Mishap
from sandbox.supabase.project import Project
from tests.application.pages import PageError, Pages
from tests.application.user import ENDED, LINE
from tests.database.rows import Row
from tests.processes.stage import Stage
from tests.processes.waiting import awaited, until

LONG_GPU = {"gpu_type": "H100", "num_gpus": 1, "gpu_memory_gb": 80, "cost_per_gpu_hour": 5.0}
LONG_KEYS = (
    '{"num_epochs": 2, "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.1, "base_model": "standin",'
    ' "learning_rate": 0.0001, "batch_size": 4, "max_steps": 20}'
)
STAGES = (
    "queued", "initializing", "waiting_for_gpu_provider", "waiting_for_storage", "queued_on_gpu",
    "waiting_for_gpu", "setup", "downloading", "preparing", "loading_model", "configuring", "training", "saving",
    "uploading",
)  # fmt: skip

COMPLETED = ("completed", "completed, long shape", "completed, long curve", "retried, then completed")
FAILED = ("failed in preflight", "failed at the launch", "failed on the GPU", "retried, then failed")
CANCELLED = ("cancelled in the queue", "cancelled before its GPU", "cancelled in training")
ON_A_GPU = (*COMPLETED, "failed on the GPU", "retried, then failed", "cancelled in training")


@dataclass
class Scene:
    """One job for each outcome, and what the pages showed of it."""

    stage: Stage
    pages: Pages
    jobs: dict[str, str] = field(default_factory=dict)
    readings: dict[str, list[Row]] = field(default_factory=dict)
    problems: set[str] = field(default_factory=set)
    datasets: dict[str, str] = field(default_factory=dict)

    def queue(self, outcome: str, dataset_id: str | None = None, **job: Any) -> str:
        self.jobs[outcome] = self.stage.user.queue(dataset_id, **job)
        self.readings[outcome] = []
        self.look()
        return self.jobs[outcome]

    def look(self) -> None:
        """Open every page that a user might have open."""
        for outcome, job_id in self.jobs.items():
            self._open(outcome, lambda job_id=job_id: self.pages.chart(job_id))
            reading = self._open(outcome, lambda job_id=job_id: self.pages.monitor(job_id))
            if reading is not None:
                self.readings[outcome].append(reading)
        for name in ("jobs", "models", "costs", "notifications"):
            self._open(name, getattr(self.pages, name))

    def _open(self, name: str, read: Any) -> Any:
        try:
            return read()
        except PageError as error:
            self.problems.add(f"{name}: {error}")
            return None

    def until(self, *outcomes: str, done: Any = lambda row: row["status"] in ENDED) -> None:
        """Read the pages until each of the jobs meets the condition."""
        left = list(outcomes)

        def look_on() -> bool:
            self.look()
            left[:] = [outcome for outcome in left if not done(self.stage.user.job(self.jobs[outcome]))]
            return not left

        until(look_on, "each job is so far", state=lambda: f"{self.stage.log()}\nnot so far: {left}")
        self.look()

    def job(self, outcome: str) -> Row:
        return self.pages.monitor(self.jobs[outcome])

    def model(self, outcome: str) -> Row:
        (found,) = [model for model in self.pages.models() if model["job_id"] == self.jobs[outcome]]
        return found

    def costs(self, outcome: str) -> list[Row]:
        return [cost for cost in self.pages.costs() if cost["job_id"] == self.jobs[outcome]]

    def notices(self, outcome: str) -> list[str]:
        own = [n for n in self.pages.notifications() if n["metadata"].get("job_id") == self.jobs[outcome]]
        return sorted(notice["type"] for notice in own)


def cancel_as_the_route_does(stage: Stage, job_id: str) -> None:
    """Cancel as the application's route does: an update, then the application's own notification."""
    job = stage.user.job(job_id)
    now = datetime.now(UTC).isoformat()
    row = {"status": "cancelled", "completed_at": now, "final_cost": job["current_cost"]}
    answer = stage.user._service.patch(f"/rest/v1/training_jobs?id=eq.{job_id}", json=row)
    answer.raise_for_status()
    notice = {
        "user_id": stage.user.user_id, "type": "job_cancelled", "title": "Job Cancelled", "priority": "medium",
        "message": "Your training job was cancelled", "action_url": f"/training/jobs/{job_id}",
        "metadata": {"job_id": job_id},
    }  # fmt: skip
    stage.user._service.post("/rest/v1/notifications", json=notice).raise_for_status()


@pytest.fixture(scope="module")
def scene(
    supabase: Project, gpus: LocalRunPod, gpu_volume: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """Every outcome, played once."""
    with closing(Stage(supabase, gpus, tmp_path_factory.mktemp("contract"), gpu_volume)) as stage:
        made = Scene(stage, Pages(stage.database, stage.user.user_id))
        _play(made)
        yield made


def _play(scene: Scene) -> None:
    stage = scene.stage
    dataset = stage.user.upload()
    # A new job is completed with the terms of the worker that started last.
    stage.one_pass()
    cancel_as_the_route_does(stage, scene.queue("cancelled in the queue", dataset))
    worker = stage.worker(LORA_WORKER_MAX_ATTEMPTS="2")
    scene.datasets["ready"] = stage.user.upload(status="validating", training_ready=False)
    broken = b"\n".join([LINE, b"{]"])
    scene.datasets["error"] = stage.user.upload(broken, status="validating", training_ready=False)
    gone = stage.user.upload()
    stage.user.remove_file(gone)
    scene.queue("failed in preflight", gone)
    scene.queue("completed", dataset, max_steps=30, gpu_config={"type": "A100-80GB", "count": 1})
    scene.queue("completed, long shape", dataset, gpu_config=LONG_GPU)
    stage.database.rows(
        "update training_jobs set hyperparameters = %s where id = %s", LONG_KEYS, scene.jobs["completed, long shape"]
    )
    scene.queue("completed, long curve", dataset, max_steps=160)
    scene.queue("failed on the GPU", dataset, seed=int(Mishap.LOSS_NOT_FINITE))
    scene.queue("retried, then failed", dataset, seed=int(Mishap.CRASH))
    scene.queue("retried, then completed", dataset, seed=int(Mishap.CRASH_ONCE))
    scene.until(*COMPLETED, "failed in preflight", "failed on the GPU", "retried, then failed")
    # There are two GPUs, so that the third job waits for one.
    for name in ("cancelled in training", "another"):
        scene.queue(name, dataset, max_steps=100, seed=int(Mishap.ENDLESS))
    scene.until("cancelled in training", "another", done=lambda row: row["current_step"] >= 3)
    scene.queue("cancelled before its GPU", dataset)
    scene.until("cancelled before its GPU", done=lambda row: row["current_stage"] == "queued_on_gpu")
    assert stage.user.cancel(scene.jobs["cancelled before its GPU"])
    # Cancelled before another job frees a GPU, which this job would get until it is refused.
    stage.settled(scene.jobs["cancelled before its GPU"])
    cancel_as_the_route_does(stage, scene.jobs["cancelled in training"])
    stage.user.cancel(scene.jobs.pop("another"))
    for job_id in scene.jobs.values():
        stage.settled(job_id)
        stage.gpus_free(job_id)
    stage.runpod.faults.add("run", "respond", status=400)
    scene.queue("failed at the launch", dataset)
    scene.until("failed at the launch")
    stage.stop(worker)


# ── what the pages read ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault(27)
def test_no_page_ever_reads_null_nan_or_an_unknown_value(scene: Scene) -> None:
    assert scene.problems == set()
    assert all(scene.readings.values())


@pytest.mark.parametrize("outcome", [*COMPLETED, *FAILED, *CANCELLED])
@pytest.mark.fault(11)
def test_each_job_ends_in_the_expected_final_state(scene: Scene, outcome: str) -> None:
    job = scene.job(outcome)
    word = "completed" if outcome in COMPLETED else outcome.split()[0].replace("retried,", "failed")
    assert job["status"] == word
    assert job["error_stack"] is None
    assert (job["error_message"] is not None) == (word == "failed")
    assert job["completed_at"] >= job["created_at"]
    if word == "completed":
        assert (job["progress"], job["current_step"]) == (100, job["total_steps"])
        assert job["estimated_completion_at"] == job["completed_at"]
        assert {"training_loss", "learning_rate"} <= job["current_metrics"].keys()


@pytest.mark.parametrize("outcome", [*COMPLETED, *FAILED, *CANCELLED])
@pytest.mark.fault(9)
def test_monitor_never_goes_backward_within_an_attempt(scene: Scene, outcome: str) -> None:
    order = {status: n for n, status in enumerate(("queued", "initializing", "running", "ended"))}
    before: Row | None = None
    for row in scene.readings[outcome]:
        assert row["current_stage"] in {*STAGES, *ENDED} or row["current_stage"].startswith("retry_after_")
        if before is None:
            before = row
            continue
        if row["retry_count"] == before["retry_count"]:
            for key in ("progress", "current_epoch", "current_step"):
                assert row[key] >= before[key], key
            rank = order.get(row["status"], 3)
            assert rank >= order.get(before["status"], 3)
        # A retry starts at 0 again, but its cost includes the earlier attempts.
        assert row["current_cost"] >= before["current_cost"]
        assert row["retry_count"] >= before["retry_count"]
        if before["started_at"] is not None:
            assert row["started_at"] == before["started_at"]
        if before["status"] in ENDED:
            assert row["status"] == before["status"]
        before = row


@pytest.mark.parametrize("outcome", ON_A_GPU)
@pytest.mark.fault(29)
def test_started_at_is_the_time_of_the_gpus_check_in(scene: Scene, outcome: str) -> None:
    runs = scene.stage.runs(scene.jobs[outcome])
    assert datetime.fromisoformat(scene.job(outcome)["started_at"]) == runs[0]["checked_in_at"]
    for run in runs:
        assert run["launched_at"] <= run["checked_in_at"]


@pytest.mark.parametrize("outcome", sorted({*COMPLETED, *FAILED, *CANCELLED} - set(ON_A_GPU)))
def test_job_without_a_gpu_has_no_start_and_no_cost(scene: Scene, outcome: str) -> None:
    job = scene.job(outcome)
    assert job["started_at"] is None
    assert (job["current_cost"], job["final_cost"]) == (0, 0)
    assert scene.costs(outcome) == []


@pytest.mark.parametrize("outcome", ON_A_GPU)
@pytest.mark.fault(28, 53)
def test_every_run_that_used_a_gpu_has_one_cost_record(scene: Scene, outcome: str) -> None:
    runs, costs = scene.stage.runs(scene.jobs[outcome]), scene.costs(outcome)
    assert sorted(cost["details"]["run_id"] for cost in costs) == sorted(run["id"] for run in runs)
    ends = {run["id"]: (run["status"], run["attempt"]) for run in runs}
    for cost in costs:
        details = cost["details"]
        assert (details["outcome"], details["attempt"]) == ends[details["run_id"]]
        assert cost["cost_type"] == "training_compute"
        hours, price = details["duration_hours"], details["price_per_hour"]
        assert cost["amount"] == pytest.approx(hours * price * details["gpu_count"], abs=0.0051)
        assert 0 < hours * 3600 < 60
        # The GPUs of the endpoint count, and not the two that the job asked for.
        assert details["gpu_count"] == 1
    job = scene.job(outcome)
    assert job["final_cost"] == job["current_cost"] == round(sum(cost["amount"] for cost in costs), 2)


EXPECTED_NOTICES = {
    "completed": ["artifact_ready", "job_completed", "job_started"],
    "completed, long shape": ["artifact_ready", "job_completed", "job_started"],
    "completed, long curve": ["artifact_ready", "job_completed", "job_started"],
    "retried, then completed": ["artifact_ready", "job_completed", "job_requeued", "job_started"],
    "retried, then failed": ["job_failed", "job_requeued", "job_started"],
    "failed in preflight": ["job_failed"],
    "failed at the launch": ["job_failed"],
    "failed on the GPU": ["job_failed", "job_started"],
    # Written by the application; the worker adds no second one.
    "cancelled in the queue": ["job_cancelled"],
    "cancelled before its GPU": ["job_cancelled"],
    "cancelled in training": ["job_cancelled", "job_started"],
}


@pytest.mark.parametrize("outcome", EXPECTED_NOTICES)
def test_each_notification_is_written_once(scene: Scene, outcome: str) -> None:
    assert scene.notices(outcome) == EXPECTED_NOTICES[outcome]


@pytest.mark.fault(10)
def test_retry_is_counted(scene: Scene) -> None:
    counts = {outcome: scene.job(outcome)["retry_count"] for outcome in scene.readings if outcome in scene.jobs}
    assert counts == {outcome: int(outcome.startswith("retried")) for outcome in counts}


# ── models and their curves ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("outcome", COMPLETED)
@pytest.mark.fault(40, 35)
def test_model_describes_its_training_and_is_linked_both_ways(scene: Scene, outcome: str) -> None:
    job, model = scene.job(outcome), scene.model(outcome)
    assert job["artifact_id"] == model["id"] == scene.stage.runs(scene.jobs[outcome])[-1]["id"]
    assert (model["status"], model["deleted_at"]) == ("stored", None)
    assert model["dataset_id"] == job["dataset_id"]
    assert model["name"].endswith(f" - {job['completed_at'][:10]} ({job['id'][:8]})")
    summary = model["training_summary"]
    assert summary["epochs_completed"] == job["total_epochs"]
    assert summary["total_steps"] == job["total_steps"] == job["current_step"]
    assert summary["final_loss"] == model["quality_metrics"]["final_training_loss"]
    assert summary["total_cost"] == job["final_cost"]
    assert len(summary["dataset_sha256"]) == 64
    assert {"adapter_model.safetensors", "adapter_config.json", "manifest.json"} <= model["artifacts"].keys()


def test_models_of_one_dataset_form_a_chain_of_versions(scene: Scene) -> None:
    models = sorted(scene.pages.models(), key=lambda model: str(model["version"]))
    assert [model["version"] for model in models] == ["1.0.0", "1.1.0", "1.2.0", "1.3.0"]
    assert [model["parent_model_id"] for model in models] == [None, *(model["id"] for model in models[:-1])]


@pytest.mark.fault(6)
def test_failed_or_cancelled_job_has_no_model(scene: Scene) -> None:
    assert {model["job_id"] for model in scene.pages.models()} == {scene.jobs[outcome] for outcome in COMPLETED}
    assert all(scene.job(outcome)["artifact_id"] is None for outcome in (*FAILED, *CANCELLED))


@pytest.mark.fault(42)
def test_best_model_is_first_and_scored_by_what_it_gained(scene: Scene) -> None:
    models = scene.pages.models()
    scores = [model["quality_metrics"]["overall_score"] for model in models]
    assert scores == sorted(scores, reverse=True)
    for model in models:
        quality, curve = model["quality_metrics"], scene.pages.chart(model["job_id"])
        first, last = curve[0]["training_loss"], curve[-1]["training_loss"]
        reduction = quality["loss_reduction_percent"]
        assert 30 < reduction <= round((first - last) / first * 100, 2)
        share = min(quality["held_out_gain"], quality["base_validation_loss"] - quality["tuned_validation_loss"])
        share /= quality["base_validation_loss"]
        assert quality["held_out_gain_low"] > 0
        assert share >= 0.1
        expected = (5, "excellent") if share >= 0.2 else (4, "good")
        assert (quality["overall_score"], quality["convergence_quality"]) == expected


@pytest.mark.parametrize("outcome", ON_A_GPU)
@pytest.mark.fault(20)
def test_first_hundred_points_cover_the_whole_curve(scene: Scene, outcome: str) -> None:
    chart = scene.pages.chart(scene.jobs[outcome])
    steps = [point["step"] for point in chart]
    assert steps == sorted(set(steps))
    assert steps[0] == 1
    (stored,) = scene.stage.database.rows(
        "select count(*) from metrics_points where job_id = %s", scene.jobs[outcome]
    )  # fmt: skip
    assert stored["count"] == len(steps)
    if outcome in COMPLETED:
        assert steps[-1] == scene.job(outcome)["total_steps"]


# ── the shapes ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("outcome", [*COMPLETED, *FAILED, *CANCELLED])
@pytest.mark.fault(26)
def test_row_holds_both_shapes_and_keeps_the_users_choices(scene: Scene, outcome: str) -> None:
    job = scene.job(outcome)
    chosen, gpu = job["hyperparameters"], job["gpu_config"]
    for short, long in (("epochs", "num_epochs"), ("rank", "lora_rank"), ("dropout", "lora_dropout")):
        assert chosen[short] == chosen[long]
    assert (chosen["epochs"], chosen["rank"]) == (2, 8)
    assert (gpu["type"], gpu["count"]) == (gpu["gpu_type"], gpu["num_gpus"])
    if outcome == "completed, long shape":
        assert (gpu["cost_per_gpu_hour"], chosen["lora_dropout"]) == (5.0, 0.1)


# ── datasets ────────────────────────────────────────────────────────────────────────────────────────


def test_valid_dataset_shows_counts_and_a_broken_one_its_bad_lines(scene: Scene) -> None:
    for status, dataset_id in scene.datasets.items():
        settled = awaited(
            lambda dataset_id=dataset_id: scene.pages.dataset(dataset_id),
            "the dataset is validated",
            fits=lambda row: row["status"] != "validating",
        )
        assert settled["status"] == status
    assert scene.pages.dataset(scene.datasets["ready"])["training_ready"] is True
    (problem,) = scene.pages.dataset(scene.datasets["error"])["validation_errors"]
    assert problem["line"] == 2
    notices = {n["action_url"]: n["type"] for n in scene.pages.notifications() if n["type"].startswith("dataset_")}
    assert notices == {f"/datasets/{dataset_id}": f"dataset_{status}" for status, dataset_id in scene.datasets.items()}
