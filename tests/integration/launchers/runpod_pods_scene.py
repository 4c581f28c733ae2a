"""RunPod's pods in the sandbox with a scripted machine, of which one runs at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import httpx

from lora_worker.launchers.base import EndCause, LaunchState
from lora_worker.launchers.runpod_pods.gpus import PodShape
from lora_worker.launchers.runpod_pods.launcher import RunPodPodsLauncher
from lora_worker.launchers.runpod_pods.plan import PodPlan
from sandbox.runpod import LocalRunPod
from tests.integration.launchers.scenes import ScriptedScene

MARK = "0123456789"
_SPEED = 8.0
"""What is over its time after eight seconds there is so after one here."""


class RunPodPodsScene(ScriptedScene):
    """An account at RunPod that has one machine for pods."""

    acts: ClassVar = {**ScriptedScene.acts, "complete": {"play": ["end"]}}
    gpu_type = "A100-80GB"
    without_output = "a pod has no output: its trainer reports by the run's own channel"
    ends: ClassVar = {
        # Its trainer asks for its pod's end, of which RunPod keeps nothing.
        "complete": (LaunchState.MISSING, EndCause.UNKNOWN),
        # RunPod does not say how a container ended, and starts it again until the worker has seen enough of it.
        "raise": (LaunchState.FAILED, EndCause.LOST),
    }

    def __init__(self, runpod: LocalRunPod, folder: Path) -> None:
        super().__init__(folder)
        self.runpod = runpod

    @classmethod
    @contextmanager
    def start(cls, folder: Path) -> Iterator[RunPodPodsScene]:
        """The scene, until the context ends."""
        begun = time.time()

        def clock() -> float:
            return begun + _SPEED * (time.time() - begun)

        with LocalRunPod.start(
            clock=clock,
            handler_module="tests.handlers.errands",
            workers_max=0,
            pod_module="tests.handlers.scripted_machine",
            pod_slots=1,
            rest_calls_per_minute=100_000,
        ) as runpod:
            yield cls(runpod, folder)

    def launcher(
        self, http: httpx.AsyncClient, *, key: str | None = None, url: str | None = None, **plan: Any
    ) -> RunPodPodsLauncher:
        return RunPodPodsLauncher(
            url or f"{self.runpod.rest_url}/pods",
            key or self.runpod.api_key,
            PodPlan(**{"mark": MARK, "image": "trainer:1", **plan}),
            shape=PodShape(None, 1),
            http=http,
            look_seconds=0.0,
            now=lambda: datetime.fromtimestamp(self.runpod.time(), UTC),
        )

    @contextmanager
    def outage(self) -> Iterator[None]:
        with self.runpod.rest_outage():
            yield
