"""Each fault is retried as often as its kind allows, and a trained adapter is never trained again."""

from __future__ import annotations

import json

import pytest

from sandbox.runpod import Outcome
from sandbox.standin import Mishap
from tests.processes.stage import Stage

_RETRY_BASE_SECONDS = 0.5


def test_crashing_trainer_is_retried_with_backoff_and_then_fails(stage: Stage) -> None:
    job_id = stage.user.queue(seed=int(Mishap.CRASH))
    stage.worker(LORA_WORKER_MAX_ATTEMPTS="2", LORA_WORKER_RETRY_BASE_SECONDS=str(_RETRY_BASE_SECONDS))
    job = stage.ended(job_id)
    assert job["status"] == "failed"
    assert job["completed_at"] is not None
    assert "2 attempts" in job["error_message"]
    assert job["error_stack"] is None
    first, second = stage.runs(job_id)
    assert [first["fault"], second["fault"]] == ["transient", "transient"]
    pause_seconds = (first["next_attempt_at"] - first["ended_at"]).total_seconds()
    assert _RETRY_BASE_SECONDS / 2 <= pause_seconds <= _RETRY_BASE_SECONDS
    assert second["created_at"] >= first["next_attempt_at"]
    assert job["retry_count"] == 1
    assert [cost["details"]["attempt"] for cost in stage.user.costs(job_id)] == [1, 2]
    # A training this short may have ended before the test sees it start.
    assert [kind for kind in stage.user.notices(job_id) if kind != "job_started"] == ["job_failed", "job_requeued"]


def test_single_crash_leaves_only_a_retry_and_a_second_bill(stage: Stage) -> None:
    job_id = stage.user.queue(seed=int(Mishap.CRASH_ONCE))
    stage.worker()
    job = stage.ended(job_id)
    assert (job["status"], job["error_message"], job["retry_count"]) == ("completed", None, 1)
    assert [run["status"] for run in stage.runs(job_id)] == ["failed", "succeeded"]
    costs = [float(cost["amount"]) for cost in stage.user.costs(job_id)]
    assert len(costs) == 2
    assert float(job["final_cost"]) == round(sum(costs), 2)
    steps = [point["step"] for point in stage.user.chart(job_id)]
    assert steps == list(range(1, 21))


def test_machine_lost_twice_is_retried_by_the_worker(stage: Stage) -> None:
    stage.runpod.faults.add("progress", "kill_worker", times=3)
    job_id = stage.user.queue(max_steps=60)
    stage.worker()
    assert stage.ended(job_id)["status"] == "completed"
    first, second = stage.runs(job_id)
    assert (first["status"], first["fault"], second["status"]) == ("lost", "infrastructure", "succeeded")
    assert len(stage.launches(job_id)) == 2
    outcomes = [execution.outcome for execution in stage.executions(job_id)]
    assert outcomes == [Outcome.LOST, Outcome.LOST, Outcome.LOST, Outcome.COMPLETED]
    assert len(stage.user.costs(job_id)) == 2


def test_permanent_training_error_is_not_retried(stage: Stage) -> None:
    job_id = stage.user.queue(seed=int(Mishap.LOSS_NOT_FINITE))
    stage.worker()
    job = stage.ended(job_id)
    assert job["status"] == "failed"
    assert "NaN" in job["error_message"]
    assert len(stage.launches(job_id)) == 1
    assert len(stage.user.costs(job_id)) == 1
    assert stage.user.notices(job_id).count("job_failed") == 1


@pytest.mark.fault(38)
def test_result_that_runpod_forgot_is_read_from_storage(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=10)
    worker = stage.worker(LORA_CRASH="worker.grant.after=kill")
    assert stage.dies(worker) != 0
    stage.gpus_free(job_id)
    (run,) = stage.runs(job_id)
    assert stage.at_runpod(run["external_job_id"])["output"]["status"] == "completed"
    stage.runpod.forget(run["external_job_id"])
    stage.expire_leases()
    stage.worker()
    job = stage.ended(job_id)
    assert job["status"] == "completed"
    assert len(stage.launches(job_id)) == 1
    (cost,) = stage.user.costs(job_id)
    assert cost["details"]["gpu_seconds"] > 0
    assert [point["step"] for point in stage.user.chart(job_id)] == list(range(1, 11))


def test_next_attempt_publishes_a_finished_adapter_untrained(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=40)
    # The worker dies before it has issued the grant, so the trainer's wait for it times out.
    worker = stage.worker(LORA_WORKER_GRANT_WAIT_SECONDS="0.5", LORA_CRASH="worker.grant.before=kill")
    assert stage.dies(worker) != 0
    stage.expire_leases()
    stage.gpus_free(job_id)
    (run,) = stage.runs(job_id)
    assert stage.at_runpod(run["external_job_id"])["output"]["status"] == "unpublished"
    assert len(stage.steps(job_id)) == 40
    stage.worker()
    assert stage.ended(job_id)["status"] == "completed"
    first, second = stage.runs(job_id)
    assert (first["fault"], first["error_code"]) == ("infrastructure", "grant_missing")
    assert len(stage.steps(job_id)) == 40
    manifest = json.loads(stage.user.stored(f"{stage.user.user_id}/{second['id']}/manifest.json") or b"{}")
    assert any("An earlier attempt had trained" in note for note in manifest["summary"]["notes"])
    assert [point["step"] for point in stage.user.chart(job_id)] == list(range(1, 41))


@pytest.mark.fault(34)
def test_artifact_that_contradicts_its_manifest_is_trained_again(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=5)
    worker = stage.worker(LORA_CRASH="worker.grant.after=kill")
    assert stage.dies(worker) != 0
    stage.gpus_free(job_id)
    (run,) = stage.runs(job_id)
    stage.user.overwrite(f"uploads/{run['id']}/adapter_model.safetensors", b"something else")
    stage.expire_leases()
    stage.worker()
    job = stage.ended(job_id)
    first, second = stage.runs(job_id)
    assert first["error_code"] == "artifact_missing"
    assert "adapter_model.safetensors" in first["error_message"]
    assert (job["status"], job["artifact_id"]) == ("completed", second["id"])
