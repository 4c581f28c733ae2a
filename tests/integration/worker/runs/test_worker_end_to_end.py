"""A job from the queue to its rows and files, with real processes; only the training is a stand-in."""

from __future__ import annotations

import hashlib
import json
import signal

import pytest

from sandbox.standin import runs_trained_twice
from tests.application.user import ENDED
from tests.processes.stage import Stage
from tests.processes.waiting import until

LIVE = {"claimed", "launched", "running"}


def test_completed_job_has_its_model_cost_and_notifications(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=30)
    stage.worker()
    job = stage.ended(job_id)
    assert (job["status"], job["current_stage"], job["error_message"]) == ("completed", "completed", None)
    assert float(job["progress"]) == 100
    assert job["started_at"] is not None
    assert job["completed_at"] is not None
    (run,) = stage.runs(job_id)
    assert job["artifact_id"] == run["id"]
    (cost,) = stage.user.costs(job_id)
    assert cost["details"]["run_id"] == run["id"]
    assert job["final_cost"] == cost["amount"]
    assert stage.user.notices(job_id) == ["artifact_ready", "job_completed", "job_started"]


def test_every_file_of_the_manifest_is_stored_unchanged(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=5)
    stage.worker()
    stage.ended(job_id)
    (run,) = stage.runs(job_id)
    folder = f"{stage.user.user_id}/{run['id']}/"
    manifest = json.loads(stage.user.stored(f"{folder}manifest.json") or b"{}")
    for file in manifest["files"]:
        content = stage.user.stored(folder + file["path"]) or b""
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
    files = stage.user.artifact(job_id)["artifacts"]
    assert files == {name: folder + name for name in [*(file["name"] for file in manifest["files"]), "manifest.json"]}


@pytest.mark.fault(16)
def test_chart_has_at_most_100_numeric_points_once_in_order(stage: Stage) -> None:
    short, long = stage.user.queue(max_steps=30), stage.user.queue(max_steps=160)
    stage.worker()
    stage.ended(short)
    stage.ended(long)
    assert [point["step"] for point in stage.user.chart(short)] == list(range(1, 31))
    points = stage.user.chart(long)
    steps = [point["step"] for point in points]
    assert steps == sorted(set(steps))
    assert {1, 160} <= set(steps)
    # As JSON, since the local Supabase's REST returns decimals as text, and PostgREST as numbers.
    stored = stage.database.rows("select to_jsonb(m) as point from metrics_points m where job_id = %s", long)
    assert len(stored) == len(points) <= 100
    for key in ("step", "epoch", "training_loss", "learning_rate", "throughput"):
        assert {type(row["point"][key]) for row in stored} <= {int, float}
    assert {type(value) for value in stage.user.job(long)["current_metrics"].values()} <= {int, float}


def test_lower_limit_of_chart_points_is_respected(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=60)
    stage.worker(LORA_WORKER_CHART_POINTS="12")
    stage.ended(job_id)
    steps = [point["step"] for point in stage.user.chart(job_id)]
    assert len(steps) <= 12
    assert (steps[0], steps[-1]) == (1, 60)


@pytest.mark.fault(52)
def test_both_hyperparameter_shapes_train_at_the_same_rate(stage: Stage) -> None:
    gpu = {"gpu_type": "A100-80GB", "num_gpus": 1, "gpu_memory_gb": 80, "cost_per_gpu_hour": 3.5}
    short, long = stage.user.queue(max_steps=5), stage.user.queue(gpu_config=gpu, max_steps=5)
    stage.database.rows(
        "update training_jobs set hyperparameters = hyperparameters - 'epochs' - 'rank'"
        " || '{\"num_epochs\": 2, \"lora_rank\": 8, \"lora_alpha\": 16, \"lora_dropout\": 0.1}' where id = %s", long,
    )  # fmt: skip
    stage.worker()
    jobs = [stage.ended(job_id) for job_id in (short, long)]
    assert [job["status"] for job in jobs] == ["completed", "completed"]
    for job in jobs:
        assert {"epochs", "num_epochs", "rank", "lora_rank"} <= job["hyperparameters"].keys()
        assert {"type", "gpu_type", "count", "num_gpus", "cost_per_gpu_hour"} <= job["gpu_config"].keys()
    assert jobs[0]["gpu_config"]["type"] == "A100-80GB"
    assert jobs[1]["gpu_config"]["cost_per_gpu_hour"] == 3.5
    assert jobs[1]["hyperparameters"]["lora_dropout"] == 0.1
    details = [cost["details"] for job_id in (short, long) for cost in stage.user.costs(job_id)]
    assert len(details) == 2
    assert len({(d["gpu_type"], d["gpu_count"], d["price_per_hour"]) for d in details}) == 1


@pytest.mark.fault(55)
def test_run_released_by_sigterm_is_finished_without_a_relaunch(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=400)
    first = stage.worker()
    stage.training(job_id)
    assert stage.stop(first) == 0
    (run,) = stage.runs(job_id)
    assert run["status"] in LIVE
    assert run["worker"] is None
    assert stage.database.row("select lease_expires_at <= now() as free from training_runs where id = %s", run["id"])[
        "free"
    ]
    stage.worker()
    assert stage.ended(job_id)["status"] == "completed"
    assert len(stage.runs(job_id)) == len(stage.launches(job_id)) == len(stage.executions(job_id)) == 1
    # The second worker received the whole curve again.
    steps = [point["step"] for point in stage.user.chart(job_id)]
    assert steps == sorted(set(steps))


@pytest.mark.fault(2)
def test_run_of_a_killed_worker_is_adopted_and_finished(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=100)
    first = stage.worker(LORA_WORKER_LEASE_SECONDS="5", LORA_CRASH="worker.progress.after=kill")
    assert stage.dies(first) == -signal.SIGKILL
    (run,) = stage.runs(job_id)
    assert run["status"] in LIVE
    stage.worker()
    assert stage.ended(job_id)["status"] == "completed"
    assert len(stage.launches(job_id)) == 1
    assert runs_trained_twice(stage.steps(job_id)) == set()


def test_cron_passes_finish_a_job_and_hold_no_lease_in_between(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=20)

    def has_ended_after_a_pass() -> bool:
        stage.one_pass()
        (run,) = stage.runs(job_id)
        assert run["worker"] is None
        return stage.user.job(job_id)["status"] in ENDED

    until(has_ended_after_a_pass, "passes bring the job to its end", state=stage.log)
    assert stage.user.job(job_id)["status"] == "completed"
    assert len(stage.launches(job_id)) == 1
    assert len(stage.user.costs(job_id)) == 1
