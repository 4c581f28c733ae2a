"""RunPod Serverless: the sandbox's endpoint with warm workers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar

from sandbox.runpod import Execution, Launch, LocalRunPod
from tests.chaos.clouds.base import Cloud
from tests.processes.warm import await_idle


class RunPodCloud(Cloud):
    """The sandbox's RunPod, with `gpus` workers at most."""

    name = "runpod"
    handler_module: ClassVar[str] = "lora_trainer.handler"
    """What each worker runs."""

    def __init__(self, stack: ExitStack, folder: Path, *, gpus: int, env: Mapping[str, str]) -> None:
        self.runpod = stack.enter_context(
            LocalRunPod.start(
                handler_module=self.handler_module, workers_max=gpus, rate_limits={}, idle_timeout_seconds=3600, env=env
            )
        )
        self.workers = gpus
        self.faults = self.runpod.faults

    @property
    def environment(self) -> Mapping[str, str]:
        return {"GPU_CLUSTER_API_URL": self.runpod.api_url, "GPU_CLUSTER_API_KEY": self.runpod.api_key}

    def launches(self) -> Sequence[Launch]:
        return tuple(self.runpod.ledger.launches)

    def orphans(self) -> Sequence[Execution]:
        return self.runpod.orphans()

    @contextmanager
    def outage(self) -> Iterator[None]:
        with self.runpod.outage():
            yield

    def warm_up(self) -> None:
        """Start every GPU worker, since ten cold starts during a test would disturb it."""
        await_idle(self.runpod, self.workers)

    def keep_logs(self, folder: Path) -> None:
        (folder / "trainers.log").write_text(self.runpod.logs())
        (folder / "ledger.json").write_text(json.dumps(self.runpod.ledger.as_json(), indent=1))
