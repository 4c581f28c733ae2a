"""SkyPilot: the stand-in of its API server, behind a proxy that breaks what its SDK sends and fetches."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from urllib.parse import parse_qs

from starlette.responses import JSONResponse, Response

from lora_worker.launchers.marks import run_of_name
from sandbox.runpod import Execution, Launch
from tests.chaos.clouds.faulty_proxy import Call, FaultyProxy, note_nothing
from tests.chaos.clouds.spot import SpotCloud
from tests.integration.launchers.skypilot_scene import python_with_sdk
from tests.skypilot_server import TOKEN, ManagedJob, SkyPilotServer

_CALLS = {
    "/jobs/launch": "run",
    "/jobs/queue/v2": "status",
    "/jobs/cancel": "cancel",
    "/api/health": "health",
}
"""By their paths. Their answers hold nothing but the id of a request, whose outcome is fetched at `/api/get`."""


class SkyPilotCloud(SpotCloud):
    """An API server with `gpus` spot machines. Each managed job is a process of the trainer's real entry."""

    name = "skypilot"

    def __init__(self, stack: ExitStack, folder: Path, *, gpus: int, env: Mapping[str, str]) -> None:
        self._folder = folder / "skypilot"
        self._folder.mkdir()
        image = {**env, "HOME": str(self._folder)}
        self.server = SkyPilotServer(
            self._folder, module="lora_trainer.machine", machines=gpus, image_environment=image
        )
        stack.callback(self.server.close)
        self._python = python_with_sdk(self._folder)
        self._proxy = FaultyProxy(stack, self.server.url, name_of=self._name_of, accepted=note_nothing, refuse=_refuse)
        self.faults = self._proxy.faults

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "LORA_WORKER_LAUNCHER": self.name,
            "LORA_WORKER_SKYPILOT_URL": self._proxy.url,
            "LORA_WORKER_SKYPILOT_TOKEN": TOKEN,
            "LORA_WORKER_SKYPILOT_PYTHON": self._python,
            "LORA_WORKER_SKYPILOT_IMAGE": "ghcr.io/example/lora-trainer:1",
            "LORA_WORKER_SKYPILOT_SPOT": "true",
            "LORA_WORKER_SKYPILOT_VOLUME": "s3://checkpoints",
            "LORA_WORKER_ENDPOINT_GPU_TYPE": "L4",
        }

    def launches(self) -> Sequence[Launch]:
        return [Launch(job.name, run_of_name(job.name), job.made_at) for job in self._jobs()]

    def orphans(self) -> Sequence[Execution]:
        return [Execution(job.name, run_of_name(job.name), "", job.made_at) for job in self.server.living()]

    def outage(self) -> AbstractContextManager[None]:
        return self._proxy.outage()

    def keep_logs(self, folder: Path) -> None:
        (folder / "ledger.json").write_text(json.dumps([asdict(launch) for launch in self.launches()], indent=1))
        for job in self._jobs():
            path = self._folder / f"{job.job_id}.log"
            lines = path.read_text(errors="replace") if path.exists() else ""
            (folder / f"{job.name}.log").write_text(f"{json.dumps({**job.record(), 'starts': job.starts})}\n{lines}")

    def kill_one(self, rng: random.Random) -> None:
        if (job := self._one(rng)) is not None and job.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(job.process.pid, signal.SIGKILL)

    def take_one_away(self, rng: random.Random) -> None:
        if (job := self._one(rng)) is not None:
            self.server.preempt(job.name)

    def have_no_machine(self, times: int) -> None:
        self.server.faults += ["no_resource"] * times

    @contextmanager
    def late_lists(self, seconds: float) -> Iterator[None]:
        self.server.lists_lag_seconds = seconds
        try:
            yield
        finally:
            self.server.lists_lag_seconds = 0.0

    def _jobs(self) -> list[ManagedJob]:
        return list(self.server.jobs.values())

    def _one(self, rng: random.Random) -> ManagedJob | None:
        working = self.server.working()
        return rng.choice(working) if working else None

    def _name_of(self, call: Call) -> str | None:
        if call.path != "/api/get":
            return _CALLS.get(call.path)
        # Of the call whose outcome it fetches, so that a fault of that call strikes either of the two.
        return _CALLS.get(self.server.path_of(parse_qs(call.query)["request_id"][0]))


def _refuse(status: int, message: str, headers: dict[str, str]) -> Response:
    return JSONResponse({"detail": message}, status, headers)
