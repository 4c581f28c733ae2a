"""Faults of trainers that have a process, and perhaps a machine, of their own."""

from __future__ import annotations

import time

from sandbox.standin import Mishap
from tests.chaos.clouds.base import MachineCloud
from tests.chaos.faults.table import FaultTable
from tests.chaos.scene import COMPLETED, FAILED, Scene
from tests.chaos.world import Plan
from tests.processes.waiting import until

FAULTS = FaultTable(MachineCloud)


@FAULTS.add("trainers killed in the middle of jobs")
def trainers_killed(scene: Scene) -> None:
    cloud = scene.cloud(MachineCloud)
    scene.queue()
    scene.until_training(5)
    for _ in range(6):
        time.sleep(0.7)
        cloud.kill_one(scene.rng)


@FAULTS.add("no worker while trainers end their jobs")
def workers_away(scene: Scene) -> None:
    crew = scene.world.crew
    # Trainers that finish meanwhile get no grant; keep their wait short.
    crew.replace({"LORA_WORKER_GRANT_WAIT_SECONDS": "5"})
    scene.queue()
    scene.until_training(5)
    crew.stop()
    until(lambda: not scene.world.cloud.orphans(), "the launcher has nothing more to do")
    crew.replace({})


@FAULTS.add("trainings that crash, at every attempt or once")
def trainings_crash(scene: Scene) -> None:
    scene.queue(
        *[Plan(8, Mishap.CRASH, FAILED)] * 2,
        *[Plan(8, Mishap.LOSS_NOT_FINITE, FAILED)] * 2,
        *[Plan(12, Mishap.CRASH_ONCE, COMPLETED)] * 3,
    )
