"""Where the jobs of a chaos run train: a launcher's other side, with faults of its calls and records of what it did."""

from __future__ import annotations

import asyncio
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sandbox.gpu_server import LocalGpuServer
from sandbox.runpod import Execution, Faults, Launch, LocalRunPod
from sandbox.runpod.listener import Listener
from sandbox.runpod.wire import answer_with
from tests.processes.warm import await_idle

OPERATIONS = {"training/submit": "run", "training/status": "status", "training/cancel": "cancel", "health": "health"}
"""The GPU server's routes, by the names that the same calls have at RunPod."""


class Cloud(ABC):
    """One launcher's other side. `faults` are armed by RunPod's names of the calls, whatever they are called here."""

    name: ClassVar[str]
    faults: Faults

    @property
    @abstractmethod
    def environment(self) -> Mapping[str, str]:
        """The settings of a worker that launches here."""

    @abstractmethod
    def launches(self) -> Sequence[Launch]:
        """The launches that were accepted."""

    @abstractmethod
    def orphans(self) -> Sequence[Execution]:
        """What has not ended yet."""

    @abstractmethod
    @contextmanager
    def outage(self) -> Iterator[None]:
        """Nobody answers while the context is open; what trains goes on."""

    @abstractmethod
    def warm_up(self) -> None:
        """Have everything started that would slow a fault down."""

    @abstractmethod
    def keep_logs(self, folder: Path) -> None:
        """Write down what it did, for whoever looks for the reason of a broken promise."""


class RunPodCloud(Cloud):
    """The sandbox's RunPod, with so many workers at most."""

    name = "runpod"

    def __init__(self, stack: ExitStack, *, workers: int, env: Mapping[str, str], handler_module: str) -> None:
        self.runpod = stack.enter_context(
            LocalRunPod.start(
                handler_module=handler_module, workers_max=workers, rate_limits={}, idle_timeout_seconds=3600, env=env
            )
        )
        self.workers = workers
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


class GpuServerCloud(Cloud):
    """`lora-worker gpu-server` behind a proxy that breaks calls, and notes which submissions were accepted."""

    name = "gpu-server"

    def __init__(self, stack: ExitStack, folder: Path, *, gpus: int, env: Mapping[str, str]) -> None:
        self.server = stack.enter_context(LocalGpuServer(folder / "gpu-server", env, gpus=gpus))
        self.faults = Faults()
        self._launches: dict[str, Launch] = {}
        self._listener = Listener(Starlette(routes=[Route("/{path:path}", self._pass_on, methods=["GET", "POST"])]))
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="faulty proxy")
        self._thread.start()
        stack.callback(self._stop)
        self._started.result()

    @property
    def environment(self) -> Mapping[str, str]:
        return {**self.server.environment(), "LORA_WORKER_GPU_SERVER_URL": self._listener.url}

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
        self._await(self._listener.close())
        try:
            yield
        finally:
            self._await(self._listener.open())

    def warm_up(self) -> None:
        """Nothing is to start: each job has a process of its own."""

    def keep_logs(self, folder: Path) -> None:
        (folder / "gpu-server.log").write_text(self.server.log())
        (folder / "ledger.json").write_text(json.dumps([asdict(launch) for launch in self.launches()], indent=1))

    # ── the proxy ───────────────────────────────────────────────────────────────────────────────────

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        async with httpx.AsyncClient(base_url=self.server.url, timeout=30, trust_env=False) as self._http:
            await self._listener.open()
            self._started.set_result(None)
            await self._stopping.wait()
            await self._listener.close()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _await(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _pass_on(self, request: Request) -> Response:
        path = request.path_params["path"]
        operation = next((name for route, name in OPERATIONS.items() if path.startswith(route)), path)

        async def call(request: Request) -> Response:
            body = await request.body()
            headers = {
                name: request.headers[name] for name in ("authorization", "content-type") if name in request.headers
            }
            try:
                answer = await self._http.request(request.method, f"/{path}", content=body, headers=headers)
            except httpx.HTTPError:
                return Response(status_code=502)
            if operation == "run" and answer.is_success:
                job_id = answer.json()["external_job_id"]
                self._launches.setdefault(
                    job_id, Launch(job_id, json.loads(body)["input"]["run_id"], self._loop.time())
                )
            return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))

        return await answer_with(self.faults.draw(operation), request, call)
