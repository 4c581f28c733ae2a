"""Live metrics come by the run's own channel where the launcher reports none."""

from __future__ import annotations

from sandbox.standin import Mishap
from tests.processes.stage import Stage
from tests.processes.waiting import until


def test_progress_arrives_though_the_launcher_drops_every_update(stage: Stage) -> None:
    # Answered as if it was taken, and dropped.
    stage.runpod.faults.add("progress", "respond", status=200, times=None)
    job_id = stage.user.queue(max_steps=5000, seed=int(Mishap.ENDLESS))
    stage.worker()
    job = stage.training(job_id, step=20)
    assert job["current_stage"] == "training"
    until(lambda: stage.user.chart(job_id), "points of the curve are shown", state=stage.log)
    (run,) = stage.runs(job_id)
    assert "output" not in stage.at_runpod(run["external_job_id"])
    stage.user.cancel_by_update(job_id)
    stage.settled(job_id)
    assert stage.user.chart(job_id)
    assert stage.database.rows("select from training_progress where run_id = %s", run["id"]) == []


def test_huge_and_lying_progress_changes_only_its_own_run(stage: Stage) -> None:
    jobs = [stage.user.queue(max_steps=5000, seed=int(Mishap.ENDLESS)) for _ in range(2)]
    stage.worker()
    for job_id in jobs:
        stage.training(job_id, step=3)
    liar, honest = (stage.runs(job_id)[0] for job_id in jobs)
    lie = '{"run_id": "%s", "stage": "completed", "progress": 100, "current_step": 4000, "points": [1, "x"]}'
    # As a container that is not ours may have sent it: of the other run, and then of its own.
    for named, step in ((honest["id"], None), (liar["id"], 4000)):
        stage.database.rows(
            "insert into training_progress (run_id, progress, bytes) values (%s, %s, 1000)"
            " on conflict (run_id) do update set progress = excluded.progress, number = training_progress.number + 1",
            liar["id"], lie % named,
        )  # fmt: skip
        if step:
            stage.until(jobs[0], lambda row: row["current_step"] == 4000, "the lie shows in its own job")
    job = stage.user.job(jobs[1])
    assert job["current_step"] < 4000
    assert job["current_stage"] == "training"
    # Settling alone writes 100 percent and a completed job.
    assert float(stage.user.job(jobs[0])["progress"]) == 99
    assert stage.user.job(jobs[0])["status"] == "running"
    for job_id in jobs:
        stage.user.cancel_by_update(job_id)
        stage.settled(job_id)
