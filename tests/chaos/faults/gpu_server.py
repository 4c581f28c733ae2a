"""Faults of the GPU server."""

from __future__ import annotations

import time

from tests.chaos.clouds.gpu_server import GpuServerCloud
from tests.chaos.faults.table import FaultTable
from tests.chaos.scene import Scene

FAULTS = FaultTable(GpuServerCloud)


@FAULTS.add("SIGKILL of the GPU server, which starts again, three times")
def gpu_server_killed(scene: Scene) -> None:
    server = scene.cloud(GpuServerCloud).server
    scene.queue()
    for _ in range(3):
        scene.until_training(5)
        time.sleep(scene.rng.uniform(0.5, 2))
        server.kill()
        server.start()
