"""Live metrics come by the run's own channel where the launcher reports none."""

from __future__ import annotations

from functools import partial
from typing import Any

from sandbox.standin import Mishap
from tests.processes.stage import Stage
from tests.processes.waiting import awaited, until


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

    def tell(named: Any) -> None:
        """Send the lie as a container that is not ours may have sent it. The liar's next heartbeat replaces it."""
        stage.database.rows(
            "insert into training_progress (run_id, progress, bytes) values (%s, %s, 1000)"
            " on conflict (run_id) do update set progress = excluded.progress, number = training_progress.number + 1",
            liar["id"], lie % named,
        )  # fmt: skip

    def expiry() -> Any:
        return stage.runs(jobs[0])[0]["lease_expires_at"]

    def is_renewed(since: Any) -> bool:
        tell(honest["id"])
        return bool(expiry() > since)

    # Of the other run, over five renewals of the lease, with which the worker reads what was sent last.
    for _ in range(5):
        until(partial(is_renewed, expiry()), "the lease is renewed", state=stage.log)
    # And of its own, until the worker has read one.
    awaited(
        lambda: [tell(liar["id"])] and stage.user.job(jobs[0]),
        "the lie shows in its own job",
        fits=lambda row: row["current_step"] == 4000,
        state=stage.log,
    )
    job = stage.user.job(jobs[1])
    assert job["current_step"] < 4000
    assert job["current_stage"] == "training"
    # Settling alone writes 100 percent and a completed job.
    assert float(stage.user.job(jobs[0])["progress"]) == 99
    assert stage.user.job(jobs[0])["status"] == "running"
    for job_id in jobs:
        stage.user.cancel_by_update(job_id)
        stage.settled(job_id)
