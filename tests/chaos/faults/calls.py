"""Faults of the calls to a launcher, under RunPod's names: `/run` submits a job, and `/status` looks at one."""

from __future__ import annotations

import time
from contextlib import ExitStack

from tests.chaos.clouds.base import Cloud
from tests.chaos.faults.table import OUTAGE_SECONDS, FaultTable
from tests.chaos.scene import Scene
from tests.chaos.world import REQUEST_TIMEOUT_SECONDS

FAULTS = FaultTable(Cloud)


@FAULTS.add("/run: 429, with and without Retry-After")
def launch_too_many(scene: Scene) -> None:
    times = min(25, scene.jobs)
    with (
        scene.armed("run", "respond", status=429, retry_after_seconds=1, times=times) as politely,
        scene.armed("run", "respond", status=429, times=times) as bluntly,
    ):
        scene.queue()
        scene.until_struck(politely, times)
        scene.until_struck(bluntly, times)


@FAULTS.add("/run: 500 and 503, nothing accepted")
def launch_fails(scene: Scene) -> None:
    times = min(10, scene.jobs)
    with (
        scene.armed("run", "respond", status=500, times=times) as broken,
        scene.armed("run", "respond", status=503, body="html", times=times) as busy,
    ):
        scene.queue()
        scene.until_struck(broken, times)
        scene.until_struck(busy, times)


@FAULTS.add("/run: accepted, and the answer lost")
def launch_answer_lost(scene: Scene) -> None:
    # A launch that is found again spares its run a second one, so no more calls than jobs are sure to come.
    lost = min(20, scene.jobs)
    with scene.armed("run", "drop_answer", times=lost) as hits:
        scene.queue()
        scene.until_struck(hits, lost)


@FAULTS.add("/run: slower than the caller waits, accepted or not")
def launch_slow(scene: Scene) -> None:
    patience, times = REQUEST_TIMEOUT_SECONDS + 1, min(10, scene.jobs // 2)
    with (
        scene.armed("run", "delay_answer", seconds=patience, times=times) as accepted,
        scene.armed("run", "delay", seconds=patience, times=times) as delayed,
    ):
        scene.queue()
        scene.until_struck(accepted, times)
        scene.until_struck(delayed, times)
        time.sleep(patience)


@FAULTS.add("/run: broken JSON, HTML or nothing as an answer")
def launch_unreadable(scene: Scene) -> None:
    times = min(6, scene.jobs // 3)
    with ExitStack() as stack:
        hits = [
            stack.enter_context(scene.armed("run", "respond", status=200, body=body, times=times))
            for body in ("broken_json", "html", "empty")
        ]
        scene.queue()
        for count in hits:
            scene.until_struck(count, times)


@FAULTS.add("/status: 500, 429, HTML and silence for a while")
def status_unreadable(scene: Scene) -> None:
    scene.queue()
    scene.until_training(5)
    with ExitStack() as stack:
        odds = {"probability": 0.5, "times": None}
        stack.enter_context(scene.armed("status", "respond", status=500, seed=1, **odds))
        stack.enter_context(scene.armed("status", "respond", status=429, seed=2, **odds))
        stack.enter_context(scene.armed("status", "respond", status=200, body="html", seed=3, **odds))
        stack.enter_context(scene.armed("status", "disconnect", times=None))
        time.sleep(OUTAGE_SECONDS)


@FAULTS.add("/status: 404 for every job for a while")
def status_missing(scene: Scene) -> None:
    scene.queue()
    scene.until_training(5)
    with scene.armed("status", "respond", status=404, times=None):
        time.sleep(OUTAGE_SECONDS)


@FAULTS.add("the launcher refuses all connections for a while")
def launcher_away(scene: Scene) -> None:
    scene.queue()
    scene.until_training(5)
    with scene.world.cloud.outage():
        time.sleep(OUTAGE_SECONDS)
