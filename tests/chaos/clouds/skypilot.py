"""SkyPilot: the stand-in of its API server, behind a proxy that breaks what its SDK sends and fetches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import JSONResponse, Response

from lora_worker.launchers.marks import run_of_name
from sandbox.runpod import Launch
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
    no_machine = "no_resource"

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

    def launch_of(self, job: ManagedJob) -> Launch:
        return Launch(job.name, run_of_name(job.name), job.made_at)

    def log_of(self, job: ManagedJob) -> tuple[dict[str, Any], Sequence[Path]]:
        return {**job.record(), "starts": job.starts}, [self._folder / f"{job.job_id}.log"]

    def take_away(self, job: ManagedJob) -> None:
        self.server.preempt(job.name)

    def _name_of(self, call: Call) -> str | None:
        if call.path != "/api/get":
            return _CALLS.get(call.path)
        # Of the call whose outcome it fetches, so that a fault of that call strikes either of the two.
        return _CALLS.get(self.server.path_of(parse_qs(call.query)["request_id"][0]))


def _refuse(status: int, message: str, headers: dict[str, str]) -> Response:
    return JSONResponse({"detail": message}, status, headers)
