"""RunPod's pods: the sandbox's account, where each run has a pod of its own until somebody terminates it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lora_worker.launchers.marks import run_of_name
from sandbox.runpod import Execution, Launch, LocalRunPod
from tests.chaos.clouds.base import MachineCloud

_CALLS_PER_MINUTE = 100_000
"""No limit: RunPod's own suits trainings of hours."""


class RunPodPodsCloud(MachineCloud):
    """An account with machines for `gpus` pods. A pod runs the trainer's real entry with the stand-in recipe."""

    name = "runpod-pods"
    calls = {"run": "createPod", "status": "listPods", "cancel": "deletePod"}

    def __init__(self, stack: ExitStack, folder: Path, *, gpus: int, env: Mapping[str, str]) -> None:
        self.runpod = stack.enter_context(
            LocalRunPod.start(
                # No serverless worker is ever started.
                handler_module="lora_trainer.handler",
                workers_max=0,
                pod_slots=gpus,
                env=env,
                rest_calls_per_minute=_CALLS_PER_MINUTE,
            )
        )
        self.faults = self.runpod.faults

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "LORA_WORKER_LAUNCHER": self.name,
            "LORA_WORKER_RUNPOD_API_URL": self.runpod.rest_url,
            "GPU_CLUSTER_API_KEY": self.runpod.api_key,
            "LORA_WORKER_RUNPOD_PODS_IMAGE": "trainer:1",
        }

    def launches(self) -> Sequence[Launch]:
        return [Launch(pod.name, run_of_name(pod.name), pod.created_at) for pod in tuple(self.runpod.ledger.pods)]

    def orphans(self) -> Sequence[Execution]:
        """The pods that live, stopped ones too: each is billed until it is terminated."""
        return [
            Execution(pod.name, run_of_name(pod.name), pod.pod_id, pod.created_at)
            for pod in tuple(self.runpod.ledger.pods)
            if pod.ended_at is None
        ]

    @contextmanager
    def outage(self) -> Iterator[None]:
        with self.runpod.rest_outage():
            yield

    def keep_logs(self, folder: Path) -> None:
        (folder / "trainers.log").write_text(self.runpod.logs())
        (folder / "ledger.json").write_text(json.dumps(self.runpod.ledger.as_json(), indent=1))

    def kill_one(self, rng: random.Random) -> None:
        if pods := self.running():
            self.runpod.kill_container(rng.choice(pods))

    def running(self) -> list[str]:
        """The ids of the pods whose containers run."""
        return [pod["id"] for pod in self.runpod.pods() if pod["runtime"] is not None]
