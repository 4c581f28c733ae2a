"""Machines that a cloud starts for one run each: their results arrive without a launcher, and none is left running."""

from __future__ import annotations

import os
import signal

from sandbox.standin import Mishap
from tests.application.user import LINE, PAIRS
from tests.processes.machine_cloud import Cloud
from tests.processes.stage import Stage
from tests.processes.waiting import until


def dataset(stage: Stage, words: str) -> str:
    """A dataset whose words tell the stand-in of a training what to do."""
    return stage.user.upload(b"\n".join([LINE] * (PAIRS - 1) + [LINE.replace(b"question", words.encode())]))


def test_machines_without_an_output_end_their_runs_by_their_reports(cloud: Cloud) -> None:
    stage = cloud.stage
    (cloud.folder / "cloud" / "stay").touch()
    stays = stage.user.queue(max_steps=5)
    # The machine goes on after its result, and nobody stops it at once.
    assert stage.dies(cloud.worker(LORA_CRASH="worker.settle.after=kill")) == -signal.SIGKILL
    assert stage.user.job(stays)["status"] == "completed", cloud.log()
    assert len(cloud.living()) == 1
    cloud.worker()
    (launch,) = cloud.closed(stays)
    assert (cloud.machines(stays)[0] / "cancelled").exists()
    assert launch["gpu_seconds"] > 0
    assert len(stage.user.costs(stays)) == 1
    (cloud.folder / "cloud" / "stay").unlink()

    fails = stage.user.queue(dataset(stage, "fail in saving"), max_steps=5)
    ends = stage.user.queue(max_steps=5000, seed=int(Mishap.ENDLESS))
    moves = stage.user.queue(max_steps=5000, seed=int(Mishap.ENDLESS))
    stage.training(ends)
    stage.user.cancel_by_update(ends)
    stage.training(moves, step=10)
    # The cloud takes its machine back.
    os.kill(int((cloud.machines(moves)[0] / "host").read_text().split()[0]), signal.SIGTERM)

    failed = stage.ended(fails)
    assert (failed["status"], "It failed in" in failed["error_message"]) == ("failed", True), cloud.log()
    stage.settled(ends)
    assert stage.user.job(ends)["status"] == "cancelled"
    until(lambda: len({step.run_id for step in stage.steps(moves)}) == 2, "another trains it", state=cloud.log)
    first, _ = stage.runs(moves)
    assert (first["error_code"], first["fault"]) == ("interrupted", "infrastructure")
    stage.user.cancel_by_update(moves)
    stage.settled(moves)
    until(lambda: cloud.living() == [], "no machine is left", state=cloud.log)
    # It went on from its checkpoint.
    (second,) = {step.run_id for step in stage.steps(moves)} - {first["id"]}
    assert min(step.step for step in stage.steps(moves) if step.run_id == second) > 10


def test_machine_whose_worker_died_before_it_was_recorded_is_never_left(cloud: Cloud) -> None:
    stage = cloud.stage
    # It hangs before its check-in, so that nobody hears of it from the machine itself.
    cloud.set_environment(LORA_CRASH="trainer.check_in.before=stop")
    jobs = []
    for _ in range(2):
        jobs.append(stage.user.queue(max_steps=5))
        assert stage.dies(cloud.worker(LORA_CRASH="worker.launch.after_post=kill")) == -signal.SIGKILL
    ended, live = jobs
    assert len(cloud.living()) == 2
    assert [row["external_job_id"] for row in cloud.launches(live)] == [None]
    stage.user.cancel_by_update(ended)
    stage.expire_leases()
    cloud.worker()
    stage.until(live, lambda _: stage.runs(live)[0]["external_job_id"], "the machine is its run's")
    stage.user.cancel_by_update(live)
    for job_id in jobs:
        (run,) = stage.settled(job_id)
        (launch,) = cloud.closed(job_id)
        assert launch["external_job_id"] == f"lora-{run['id'].replace('-', '')}"
    until(lambda: cloud.living() == [], "no machine is left", state=cloud.log)
    assert "an unrecorded launch was found" in stage.log()
