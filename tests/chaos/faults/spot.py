"""Faults of clouds that rent out spot machines."""

from __future__ import annotations

import time

from tests.chaos.clouds.spot import SpotCloud
from tests.chaos.faults.table import OUTAGE_SECONDS, FaultTable
from tests.chaos.scene import CANCELLED, Scene
from tests.chaos.world import DOUBT_SECONDS

FAULTS = FaultTable(SpotCloud)

_MOST = 10


@FAULTS.add("spot machines taken away in the middle of jobs")
def machines_taken_away(scene: Scene) -> None:
    cloud = scene.cloud(SpotCloud)
    scene.queue(steps=(30, 60))
    scene.until_training(5)
    for _ in range(6):
        time.sleep(0.7)
        cloud.take_one_away(scene.rng)


@FAULTS.add("no machine for the first launches")
def no_machine(scene: Scene) -> None:
    scene.cloud(SpotCloud).have_no_machine(min(_MOST, scene.jobs))
    scene.queue()


@FAULTS.add("/run: the answer lost, while the account's list lacks the young jobs")
def lists_late(scene: Scene) -> None:
    lost = min(_MOST, scene.jobs)
    with (
        scene.cloud(SpotCloud).late_lists(2 * DOUBT_SECONDS),
        scene.armed("run", "drop_answer", times=lost) as hits,
    ):
        scene.queue()
        scene.until_struck(hits, lost)
        time.sleep(OUTAGE_SECONDS)


@FAULTS.add("/cancel: the answer lost, or none at all")
def cancel_answer_lost(scene: Scene) -> None:
    # A trainer that hears of the stop first ends by itself, so fewer stops than jobs are sure to be asked for.
    times = scene.jobs // 6
    scene.queue(steps=(40, 80))
    scene.until_training(5)
    with (
        scene.armed("cancel", "drop_answer", times=times) as lost,
        scene.armed("cancel", "disconnect", times=times) as never,
    ):
        for job_id in scene.rng.sample(scene.job_ids, scene.jobs // 2):
            if scene.world.cancel(job_id):
                scene.ends[job_id] = CANCELLED
        scene.until_struck(lost, times)
        scene.until_struck(never, times)
