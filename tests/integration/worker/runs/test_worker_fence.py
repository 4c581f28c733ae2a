"""One trainer trains a run, however often it is launched or delivered; the others end at once and are closed."""

from __future__ import annotations

import httpx
import pytest

from sandbox.standin import runs_trained_twice
from tests.processes.stage import Stage


def closed_launches(stage: Stage, job_id: str) -> dict[str, bool]:
    """RunPod's ids of the job's launches, and whether a worker has closed each."""
    rows = stage.database.rows(
        "select l.external_job_id, l.ended_at from training_launches l join training_runs r on r.id = l.run_id"
        " where r.job_id = %s", job_id,
    )  # fmt: skip
    return {row["external_job_id"]: row["ended_at"] is not None for row in rows}


@pytest.mark.fault(4)
def test_launch_with_a_lost_answer_is_recognised_by_its_check_in(stage: Stage) -> None:
    stage.runpod.faults.add("run", "drop_answer")
    job_id = stage.user.queue(max_steps=10)
    stage.worker()
    assert stage.ended(job_id)["status"] == "completed"
    assert "launch in doubt" in stage.log()
    (launch,) = stage.launches(job_id)
    (run,) = stage.runs(job_id)
    assert run["external_job_id"] == launch.job_id


def test_only_one_of_two_launches_of_a_run_trains(stage: Stage) -> None:
    stage.runpod.faults.add("run", "drop_answer")
    stage.runpod.set_workers(throttled=True)
    try:
        job_id = stage.user.queue(max_steps=100)
        stage.worker(LORA_WORKER_DOUBT_SECONDS="1")
        # No trainer checks in, so the worker launches again before a GPU is free.
        stage.until(job_id, lambda _: len(stage.launches(job_id)) == 2, "it is launched twice")
        stage.until(job_id, lambda row: row["current_stage"] == "queued_on_gpu", "it waits for a GPU")
    finally:
        stage.runpod.set_workers(throttled=False)
    assert stage.ended(job_id)["status"] == "completed"
    stage.gpus_free(job_id)
    (run,) = stage.runs(job_id)
    (loser,) = {launch.job_id for launch in stage.launches(job_id)} - {run["external_job_id"]}
    # The second launch is refused at its check-in, or cancelled before.
    ended = stage.at_runpod(loser)
    assert ended["status"] == "CANCELLED" or ended["output"]["status"] == "superseded"
    assert runs_trained_twice(stage.steps(job_id)) == set()
    assert len({step.execution_id for step in stage.steps(job_id)}) == 1
    stage.until(
        job_id,
        lambda _: closed_launches(stage, job_id) == {run["external_job_id"]: True, loser: True},
        "both launches are closed",
    )
    assert len(stage.user.costs(job_id)) == 1


def test_launch_without_a_live_run_is_stopped_by_any_worker(stage: Stage) -> None:
    """The superseded launch still waits in RunPod's queue when its run has ended: it must not get a GPU."""
    stage.runpod.faults.add("run", "drop_answer")
    stage.runpod.set_workers(throttled=True)
    try:
        job_id = stage.user.queue()
        worker = stage.worker(LORA_WORKER_DOUBT_SECONDS="1")
        stage.until(job_id, lambda row: row["current_stage"] == "queued_on_gpu", "it waits for a GPU")
        stage.user.cancel(job_id)
        stage.settled(job_id)
        stage.stop(worker)
    finally:
        stage.runpod.set_workers(throttled=False)
    first, second = (launch.job_id for launch in stage.launches(job_id))
    # The launch's answer was lost, so its id is unknown until it checks in.
    stage.until(job_id, lambda _: first in closed_launches(stage, job_id), "the first launch is closed")
    assert stage.at_runpod(second)["status"] == "CANCELLED"
    stage.gpus_free(job_id)
    stage.one_pass()
    assert closed_launches(stage, job_id) == {first: True, second: True}
    assert stage.steps(job_id) == []
    assert stage.user.job(job_id)["status"] == "cancelled"


def test_payload_delivered_to_two_trainers_is_trained_once(stage: Stage) -> None:
    """The later execution takes over, and the earlier one learns of it at its next heartbeat."""
    stage.runpod.faults.add("dispatch", "deliver_twice")
    job_id = stage.user.queue(max_steps=200)
    stage.worker()
    assert stage.ended(job_id)["status"] == "completed"
    stage.gpus_free(job_id)
    assert len(stage.executions(job_id)) >= 2
    assert len(stage.launches(job_id)) == len(stage.runs(job_id)) == 1
    assert runs_trained_twice(stage.steps(job_id)) == set()
    assert len(stage.user.costs(job_id)) == 1


def test_ended_run_admits_no_further_trainer(stage: Stage) -> None:
    """Somebody retries the job in RunPod's console after it has been settled."""
    job_id = stage.user.queue(max_steps=5, base_model="standin")
    worker = stage.worker()
    stage.training(job_id, step=1)
    stage.ended(job_id)
    stage.stop(worker)
    (run,) = stage.runs(job_id)
    request = stage.runpod._endpoint.jobs.get(run["external_job_id"]).request
    headers = {"Authorization": f"Bearer {stage.runpod.api_key}"}
    again = httpx.post(f"{stage.runpod.api_url}/run", headers=headers, json=request, timeout=30).json()["id"]
    stage.until(job_id, lambda _: stage.at_runpod(again)["status"] == "COMPLETED", "the second launch ends")
    assert stage.at_runpod(again)["output"]["status"] == "superseded"
    assert len(stage.steps(job_id)) == 5
    assert stage.user.job(job_id)["status"] == "completed"
