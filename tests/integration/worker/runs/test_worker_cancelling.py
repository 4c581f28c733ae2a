"""A cancelled job stops its GPU, is billed for the time used, and stays cancelled, whenever it is cancelled."""

from __future__ import annotations

import pytest

from sandbox.runpod import Outcome
from sandbox.standin import Mishap
from tests.database.rows import Row
from tests.processes.stage import Stage


def cancel_each_way(stage: Stage, jobs: list[str]) -> None:
    """Cancel one job by the application's route with the service's key, and one by its user's own call."""
    by_update, by_function = jobs
    stage.user.cancel_by_update(by_update)
    assert stage.user.cancel(by_function)
    assert not stage.user.cancel(by_function)


def assert_stays_cancelled(stage: Stage, job_id: str) -> Row:
    """Let one more worker handle everything; returns the job, which must still be cancelled."""
    before = stage.user.job(job_id)
    stage.one_pass()
    after = stage.user.job(job_id)
    assert after == before
    assert after["status"] == "cancelled"
    return after


def test_job_cancelled_in_the_queue_is_never_launched(stage: Stage) -> None:
    jobs = [stage.user.queue(), stage.user.queue()]
    cancel_each_way(stage, jobs)
    for job_id in jobs:
        assert_stays_cancelled(stage, job_id)
        assert stage.runs(job_id) == []


def test_job_cancelled_before_its_launch_costs_nothing(stage: Stage) -> None:
    stage.runpod.faults.add("run", "respond", status=429, times=None)
    jobs = [stage.user.queue(), stage.user.queue()]
    worker = stage.worker()
    for job_id in jobs:
        stage.until(job_id, lambda row: row["current_stage"] == "waiting_for_gpu_provider", "RunPod is waited for")
        assert stage.user.job(job_id)["status"] == "initializing"
    cancel_each_way(stage, jobs)
    for job_id in jobs:
        assert [run["status"] for run in stage.settled(job_id)] == ["cancelled"]
    stage.stop(worker)
    stage.runpod.faults.clear()
    for job_id in jobs:
        job = assert_stays_cancelled(stage, job_id)
        assert job["completed_at"] is not None
        assert float(job["final_cost"]) == 0
        assert stage.launches(job_id) == []
        assert stage.user.costs(job_id) == []
        assert stage.user.notices(job_id) == ["job_cancelled"]


def test_job_cancelled_while_waiting_for_a_gpu_never_gets_one(stage: Stage) -> None:
    stage.runpod.set_workers(throttled=True)
    try:
        jobs = [stage.user.queue(), stage.user.queue()]
        worker = stage.worker()
        for job_id in jobs:
            stage.until(job_id, lambda row: row["current_stage"] == "queued_on_gpu", "it waits for a GPU")
        cancel_each_way(stage, jobs)
        runs = [run for job_id in jobs for run in stage.settled(job_id)]
    finally:
        stage.runpod.set_workers(throttled=False)
    assert [run["status"] for run in runs] == ["cancelled", "cancelled"]
    assert [stage.at_runpod(run["external_job_id"])["status"] for run in runs] == ["CANCELLED", "CANCELLED"]
    stage.stop(worker)
    for job_id in jobs:
        assert_stays_cancelled(stage, job_id)
        assert stage.executions(job_id) == []
        assert stage.user.costs(job_id) == []
        assert stage.user.notices(job_id) == ["job_cancelled"]


@pytest.mark.fault(7)
def test_cancelling_stops_the_gpu_and_bills_its_use(stage: Stage) -> None:
    jobs = [stage.user.queue(max_steps=100, seed=int(Mishap.ENDLESS)) for _ in range(2)]
    worker = stage.worker()
    for job_id in jobs:
        stage.training(job_id)
    cancel_each_way(stage, jobs)
    for job_id in jobs:
        assert [run["status"] for run in stage.settled(job_id)] == ["cancelled"]
        # RunPod answers CANCELLED at once; the process may end a moment later.
        stage.gpus_free(job_id)
    stage.stop(worker)
    for job_id in jobs:
        job = assert_stays_cancelled(stage, job_id)
        (cost,) = stage.user.costs(job_id)
        assert cost["details"]["gpu_seconds"] > 0
        assert cost["details"]["outcome"] == "cancelled"
        assert job["final_cost"] == cost["amount"]
        assert job["completed_at"] is not None
        assert stage.user.chart(job_id) != []
        (execution,) = stage.executions(job_id)
        # FAILED: the trainer learned of the cancel by its heartbeat before RunPod stopped it.
        assert execution.outcome in {Outcome.STOPPED, Outcome.IGNORED, Outcome.FAILED}
        assert len(stage.steps(job_id)) < 100
        assert stage.user.notices(job_id) == ["job_cancelled", "job_started"]


@pytest.mark.parametrize(
    "faults", [[("cancel", "respond")] * 4, [("cancel", "drop_answer")]], ids=["refused", "unheard"]
)
def test_cancel_that_runpod_refused_once_still_stops_the_gpu(stage: Stage, faults: list[tuple[str, str]]) -> None:
    job_id = stage.user.queue(max_steps=100, seed=int(Mishap.ENDLESS))
    stage.worker()
    stage.training(job_id)
    for operation, action in faults:
        stage.runpod.faults.add(operation, action)  # type: ignore[arg-type]
    stage.user.cancel_by_update(job_id)
    (run,) = stage.settled(job_id)
    assert stage.at_runpod(run["external_job_id"])["status"] in {"CANCELLED", "FAILED"}
    stage.gpus_free(job_id)
    assert len(stage.user.costs(job_id)) == 1
