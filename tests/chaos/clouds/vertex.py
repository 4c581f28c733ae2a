"""Google's Vertex AI: the strict stand-in of a region, behind a proxy that breaks the worker's calls."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse, Response

from lora_worker.launchers.marks import run_of_name
from sandbox.runpod import Launch
from tests.chaos.clouds.faulty_proxy import Call, FaultyProxy, note_nothing
from tests.chaos.clouds.spot import SpotCloud
from tests.handlers.vertex_worker import LOGGING_VARIABLE
from tests.vertex_server import PROJECT, REGION, Job, VertexServer

_STATUSES = {404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE"}
"""Google's names of the statuses that faults answer with (`google.rpc.Code`)."""


class VertexCloud(SpotCloud):
    """A region with `gpus` spot machines. Each custom job is a process of the trainer's real entry."""

    name = "vertex"
    no_machine = "stockout"
    # Its containers have no group of processes of their own.
    send_signal = staticmethod(os.kill)
    worker_module = "tests.handlers.vertex_worker"

    def __init__(self, stack: ExitStack, folder: Path, *, gpus: int, env: Mapping[str, str]) -> None:
        self._folder = folder / "vertex"
        self._folder.mkdir()
        image = {**env, "HOME": str(self._folder)}
        self.server = VertexServer(self._folder, module="lora_trainer.machine", gpus=gpus, image_environment=image)
        stack.callback(self.server.close)
        self._proxy = FaultyProxy(stack, self.server.url, name_of=_name_of, accepted=note_nothing, refuse=_refuse)
        self.faults = self._proxy.faults
        # An outage is one of the token service, too.
        self._key = self._folder / "key-for-the-proxy.json"
        key = json.loads(self.server.key_file.read_text())
        self._key.write_text(json.dumps({**key, "token_uri": f"{self._proxy.url}/token"}))

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "LORA_WORKER_LAUNCHER": self.name,
            "LORA_WORKER_VERTEX_PROJECT": PROJECT,
            "LORA_WORKER_VERTEX_REGION": REGION,
            "LORA_WORKER_VERTEX_IMAGE": "us-docker.pkg.dev/tests-project/lora/trainer:1",
            "LORA_WORKER_VERTEX_STRATEGY": "SPOT",
            "LORA_WORKER_VERTEX_BUCKET": "checkpoints",
            "LORA_WORKER_VERTEX_API_URL": self._proxy.url,
            "LORA_WORKER_ENDPOINT_GPU_TYPE": "L4",
            "GOOGLE_APPLICATION_CREDENTIALS": str(self._key),
            LOGGING_VARIABLE: self._proxy.url,
        }

    def launch_of(self, job: Job) -> Launch:
        return Launch(job.launch_id, run_of_name(job.launch_id), job.proto.create_time.ToMilliseconds() / 1000)

    def log_of(self, job: Job) -> tuple[dict[str, Any], Sequence[Path]]:
        told = {"state": job.state, "error": job.proto.error.message, "starts": job.starts}
        return told, [self._folder / f"{job.proto.name.rpartition('/')[2]}.log"]

    def take_away(self, job: Job) -> None:
        self.server.preempt(job.launch_id)


def _name_of(call: Call) -> str | None:
    if "/customJobs" not in call.path:
        return None
    if call.method == "POST":
        return "run" if call.path.endswith("/customJobs") else "cancel"
    # A launch whose number the worker does not know is looked for by its name.
    return "health" if call.path.endswith("/customJobs") and "display_name" not in call.query else "status"


def _refuse(status: int, message: str, headers: dict[str, str]) -> Response:
    name = _STATUSES.get(status, HTTPStatus(status).name)
    return JSONResponse({"error": {"code": status, "message": message, "status": name}}, status, headers)
