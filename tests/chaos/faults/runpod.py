"""Faults of RunPod Serverless: its workers, its queue, and the results that it keeps."""

from __future__ import annotations

import time
from contextlib import ExitStack

from sandbox.standin import Mishap
from tests.chaos.clouds.runpod import RunPodCloud
from tests.chaos.faults.table import OUTAGE_SECONDS, FaultTable
from tests.chaos.scene import COMPLETED, FAILED, Scene
from tests.chaos.world import DOUBT_SECONDS, Plan
from tests.processes.waiting import until

FAULTS = FaultTable(RunPodCloud)

_RETENTION_SECONDS = 1801


@FAULTS.add("no worker while runs end and RunPod forgets them")
def daemon_down(scene: Scene) -> None:
    runpod, crew = scene.world.runpod, scene.world.crew
    # Trainers that finish meanwhile get no grant; keep their wait short.
    crew.replace({"LORA_WORKER_GRANT_WAIT_SECONDS": "5"})
    # Results come late, so that runs are published but not yet settled when the workers are killed.
    with scene.armed("job-done", "delay", seconds=3, times=None):
        scene.queue()
        until(lambda: len(scene.world.manifests(scene.job_ids)) >= 5, "five runs are published")
        crew.stop()
        for waiting in [one for one in runpod.orphans() if not one.worker_id][10:]:
            runpod.forget(waiting.job_id)
        until(lambda: not runpod.orphans(), "RunPod has nothing more to do")
        runpod.advance(_RETENTION_SECONDS)
    crew.replace({})


@FAULTS.add("the endpoint has no workers for a while (max 0)")
def no_gpu_workers(scene: Scene) -> None:
    scene.queue()
    scene.until_training(5)
    cloud = scene.cloud(RunPodCloud)
    cloud.runpod.set_workers(max_workers=0)
    time.sleep(OUTAGE_SECONDS + DOUBT_SECONDS)
    cloud.runpod.set_workers(max_workers=cloud.workers)


@FAULTS.add("jobs forgotten (404), before and after they published")
def jobs_forgotten(scene: Scene) -> None:
    runpod = scene.world.runpod
    forgotten: set[str] = set()
    with scene.armed("job-done", "delay", seconds=2, times=None):
        scene.queue()
        scene.until_training(5)
        training = scene.world.query(
            "select external_job_id as id from training_runs where job_id = any(%s::uuid[])"
            " and status = 'running' and upload_request is null limit 4",
            scene.job_ids,
        )
        for row in training:
            runpod.forget(row["id"])

        def forget_the_published() -> bool:
            for job_id in scene.world.manifests(scene.job_ids).values():
                runpod.forget(job_id)
                forgotten.add(job_id)
            return len(forgotten) >= 8

        until(forget_the_published, "eight published runs to forget")


@FAULTS.add("results refused: job stuck, run again, or ended without output")
def results_lost(scene: Scene) -> None:
    with ExitStack() as stack:
        hits = [
            stack.enter_context(scene.armed("job-done", "lose_result", then=then, times=9))
            for then in ("stuck", "retried", "completed")
        ]
        scene.queue()
        for count in hits:
            # The SDK tries each result three times.
            scene.until_struck(count, 9)


@FAULTS.add("a late progress overwrites the result")
def late_progress(scene: Scene) -> None:
    with scene.armed("job-done", "late_progress", times=8) as hits:
        scene.queue()
        scene.until_struck(hits, 8)


@FAULTS.add("GPU workers killed in the middle of jobs")
def gpu_workers_killed(scene: Scene) -> None:
    with scene.armed("dispatch", "kill_worker", seconds=0.8, times=6, skip=4) as hits:
        scene.queue()
        scene.until_struck(hits, 6)
        time.sleep(0.8)


@FAULTS.add("jobs that kill their GPU worker or crash, at every attempt")
def gpu_poison(scene: Scene) -> None:
    scene.queue(
        Plan(8, Mishap.KILL_WORKER, FAILED),
        *[Plan(8, Mishap.CRASH, FAILED)] * 2,
        *[Plan(8, Mishap.LOSS_NOT_FINITE, FAILED)] * 2,
        *[Plan(12, Mishap.CRASH_ONCE, COMPLETED)] * 3,
    )


@FAULTS.add("jobs handed to two GPU workers at once")
def delivered_twice(scene: Scene) -> None:
    with scene.armed("dispatch", "deliver_twice", times=8, skip=2) as hits:
        # Longer than the heartbeat interval, within which the superseded execution learns of its lost fence.
        scene.queue(steps=(50, 70))
        scene.until_struck(hits, 8)


@FAULTS.add("RunPod reports jobs as timed out instead of starting them")
def timed_out(scene: Scene) -> None:
    with scene.armed("dispatch", "time_out", times=8) as hits:
        scene.queue()
        scene.until_struck(hits, 8)
