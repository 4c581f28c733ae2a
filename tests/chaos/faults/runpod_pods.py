"""Faults of RunPod's pods, which nothing but a call ends: its lists, its stock, its terminations and its console."""

from __future__ import annotations

import time

import httpx

from tests.chaos.clouds.runpod_pods import RunPodPodsCloud
from tests.chaos.faults.table import OUTAGE_SECONDS, FaultTable
from tests.chaos.scene import CANCELLED, Scene
from tests.chaos.world import DOUBT_SECONDS
from tests.processes.waiting import until

FAULTS = FaultTable(RunPodPodsCloud)

_GPUS = "AMPERE_80"
"""Those of the jobs."""


@FAULTS.add("pods whose container dies at each start")
def containers_die(scene: Scene) -> None:
    runpod = scene.cloud(RunPodPodsCloud).runpod
    before = len(runpod.ledger.pods)
    scene.queue()
    until(lambda: len(runpod.ledger.pods) >= before + 3, "three pods")
    doomed = runpod.ledger.pods[before : before + 3]

    def kill_until_ended() -> bool:
        running = set(scene.cloud(RunPodPodsCloud).running())
        for pod in doomed:
            if pod.pod_id in running:
                runpod.kill_container(pod.pod_id)
        return all(pod.ended_at is not None for pod in doomed)

    until(kill_until_ended, "pods that never get to work are terminated", state=lambda: doomed)


@FAULTS.add("pods stopped, and pods terminated, in the console")
def console(scene: Scene) -> None:
    cloud = scene.cloud(RunPodPodsCloud)
    scene.queue()
    for _ in range(3):
        scene.until_training(5)
        until(lambda: len(cloud.running()) >= 2, "two pods")
        stopped, terminated = scene.rng.sample(cloud.running(), 2)
        cloud.runpod.stop_pod(stopped)
        httpx.delete(
            f"{cloud.runpod.rest_url}/pods/{terminated}", headers={"authorization": f"Bearer {cloud.runpod.api_key}"}
        )
        time.sleep(1)


@FAULTS.add("no GPU is left for a pod for a while")
def no_stock(scene: Scene) -> None:
    runpod = scene.cloud(RunPodPodsCloud).runpod
    runpod.set_stock(_GPUS, "NONE")
    scene.queue()
    time.sleep(OUTAGE_SECONDS + DOUBT_SECONDS)
    runpod.set_stock(_GPUS, "HIGH")


@FAULTS.add("lists that miss every pod for a while, first found by its id, then not")
def pods_missing(scene: Scene) -> None:
    runpod = scene.cloud(RunPodPodsCloud).runpod
    scene.queue()
    scene.until_training(5)
    with runpod.unlisted_pods(lambda _: True):
        time.sleep(OUTAGE_SECONDS)
        with scene.armed("getPod", "respond", status=404, times=None):
            time.sleep(OUTAGE_SECONDS)


@FAULTS.add("pods made with a lost answer, which lists miss for a while")
def new_pods_missing(scene: Scene) -> None:
    runpod = scene.cloud(RunPodPodsCloud).runpod
    lost = min(20, scene.jobs)
    with (
        runpod.unlisted_pods(lambda pod: runpod.time() - pod.created_at < DOUBT_SECONDS + 2),
        scene.armed("run", "drop_answer", times=lost) as hits,
    ):
        scene.queue()
        scene.until_struck(hits, lost)
        time.sleep(OUTAGE_SECONDS)


@FAULTS.add("terminating a pod fails, or its answer is lost, while jobs are cancelled")
def terminating_fails(scene: Scene) -> None:
    times = min(10, scene.jobs // 2)
    with (
        scene.armed("cancel", "respond", status=500, times=times) as failed,
        scene.armed("cancel", "respond", status=429, retry_after_seconds=1, times=times) as refused,
        scene.armed("cancel", "drop_answer", times=times) as lost,
    ):
        scene.queue(steps=(10, 30))
        for job_id in scene.rng.sample(scene.job_ids, len(scene.job_ids) // 2):
            time.sleep(scene.rng.uniform(0, 0.4))
            if scene.world.cancel(job_id):
                scene.ends[job_id] = CANCELLED
        for hits in (failed, refused, lost):
            scene.until_struck(hits, times)
