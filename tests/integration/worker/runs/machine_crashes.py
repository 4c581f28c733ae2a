"""SIGKILL of the worker at each of its crash points, where a cloud starts a machine for each run.

`make crashes LAUNCHER=machines` runs it; it takes longer than the suite has. Each time the next worker ends the job as
it should end, and no machine is left, none trained a run twice, and each run that used one is billed once.
"""

from __future__ import annotations

import signal

import pytest

from lora_contract.crash_points import CRASH_POINTS
from sandbox.standin import Mishap, runs_trained_twice
from tests.processes.machine_cloud import Cloud
from tests.processes.waiting import until

POINTS = [point for point in CRASH_POINTS if point.startswith("worker.")]
CANCELLING = ("worker.cancel", "worker.log")


@pytest.mark.parametrize("stays", [False, True], ids=["ends", "stays"])
@pytest.mark.parametrize("point", POINTS)
def test_no_machine_is_left_when_a_worker_is_killed(cloud: Cloud, point: str, stays: bool) -> None:
    stage, is_cancelled = cloud.stage, point.startswith(CANCELLING)
    if stays or point.startswith("worker.stray"):  # else it may have ended before anybody looks for strays
        (cloud.folder / "cloud" / "stay").touch()
    job_id = (
        stage.user.queue(max_steps=5000, seed=int(Mishap.ENDLESS)) if is_cancelled else stage.user.queue(max_steps=5)
    )
    if point == "worker.adopt.after":
        stage.dies(cloud.worker(LORA_CRASH="worker.launch.after_record=kill"))
        stage.expire_leases()
    # A private endpoint is never called: each event still passes the point behind a delivery.
    endpoint = "https://127.0.0.1:9/hook whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    told = {"LORA_WORKER_WEBHOOKS": endpoint} if point.startswith("worker.webhook") else {}
    worker = cloud.worker(LORA_CRASH=f"{point}=kill", **told)
    if is_cancelled:
        stage.training(job_id)
        stage.user.cancel_by_update(job_id)
    if point.startswith("worker.release"):
        stage.training(job_id, step=1)
        worker.send_signal(signal.SIGTERM)
    assert stage.dies(worker) == -signal.SIGKILL
    stage.expire_leases()
    cloud.worker()
    assert stage.ended(job_id)["status"] == ("cancelled" if is_cancelled else "completed")
    (run,) = stage.settled(job_id)
    cloud.closed(job_id)
    until(lambda: cloud.living() == [], "no machine is left", state=cloud.log)
    assert [machine.name for machine in cloud.machines(job_id)] == [f"lora-{run['id'].replace('-', '')}"]
    assert runs_trained_twice(stage.steps(job_id)) == set()
    assert len(stage.user.costs(job_id)) == 1
