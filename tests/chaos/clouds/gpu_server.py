"""The GPU server: `lora-worker gpu-server` behind a proxy that breaks its calls."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import httpx

from sandbox.gpu_server import LocalGpuServer
from sandbox.runpod import Execution, Launch
from tests.chaos.clouds.base import MachineCloud
from tests.chaos.clouds.faulty_proxy import Call, FaultyProxy

_CALLS = {
    "/training/submit": "run",
    "/training/status": "status",
    "/training/cancel": "cancel",
    "/health": "health",
}
"""By the beginnings of their paths."""


class GpuServerCloud(MachineCloud):
    """A GPU server with `gpus` devices. Which submissions it accepted the proxy has seen, and their ends it says."""

    name = "gpu-server"

    def __init__(self, stack: ExitStack, folder: Path, *, gpus: int, env: Mapping[str, str]) -> None:
        self.server = stack.enter_context(LocalGpuServer(folder / "gpu-server", env, gpus=gpus))
        self._launches: dict[str, Launch] = {}
        self._proxy = FaultyProxy(stack, self.server.url, name_of=_name_of, accepted=self._note)
        self.faults = self._proxy.faults

    @property
    def environment(self) -> Mapping[str, str]:
        return {**self.server.environment(), "LORA_WORKER_GPU_SERVER_URL": self._proxy.url}

    def launches(self) -> Sequence[Launch]:
        return tuple(self._launches.values())

    def orphans(self) -> Sequence[Execution]:
        found = []
        for launch in self.launches():
            status = self.server.call("GET", f"/training/status/{launch.job_id}").json()["status"]
            if status in {"queued", "running"}:
                found.append(Execution(launch.job_id, launch.run_id, "gpu-server", launch.at))
        return found

    @contextmanager
    def outage(self) -> Iterator[None]:
        with self._proxy.outage():
            yield

    def keep_logs(self, folder: Path) -> None:
        (folder / "gpu-server.log").write_text(self.server.log())
        (folder / "ledger.json").write_text(json.dumps([asdict(launch) for launch in self.launches()], indent=1))

    def kill_one(self, rng: random.Random) -> None:
        if pids := self.server.trainers():
            with suppress(ProcessLookupError):
                os.kill(rng.choice(pids), signal.SIGKILL)

    def _note(self, call: Call, answer: httpx.Response) -> None:
        job_id = answer.json()["external_job_id"]
        # A submission that is repeated with its id is the same job.
        self._launches.setdefault(job_id, Launch(job_id, json.loads(call.body)["input"]["run_id"], time.time()))


def _name_of(call: Call) -> str | None:
    return next((name for path, name in _CALLS.items() if call.path.startswith(path)), None)
