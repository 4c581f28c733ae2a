"""A GPU server inside the test: its jobs, its runner over a scripted trainer, and a client of its API."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from lora_worker.gpu_server.api import GpuServerApi
from lora_worker.gpu_server.jobs import Jobs
from lora_worker.gpu_server.runner import Machine, Runner
from tests.project import ROOT

KEY = "k" * 32
SCRIPTED = ROOT / "tests" / "handlers" / "scripted_trainer.py"


class Server:
    """What a test does with the server."""

    def __init__(self, folder: Path, jobs: Jobs, runner: Runner, http: httpx.AsyncClient) -> None:
        self.folder, self.jobs, self.runner, self.http = folder, jobs, runner, http

    async def submit(self, *play: str, run_id: str = "run", **policy: float) -> str:
        given = {"run_id": run_id, "play": play, "starts": str(self.folder / f"{run_id}.starts")}
        answer = await self.http.post("/training/submit", json={"input": given, "policy": policy})
        answer.raise_for_status()
        return str(answer.json()["external_job_id"])

    async def status(self, job_id: str) -> dict[str, Any]:
        answer = await self.http.get(f"/training/status/{job_id}")
        answer.raise_for_status()
        return dict(answer.json())

    async def until(self, job_id: str, fits: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        async with asyncio.timeout(120):
            while not fits(seen := await self.status(job_id)):
                await asyncio.sleep(0.02)
        return seen

    async def ended(self, job_id: str) -> dict[str, Any]:
        return await self.until(job_id, lambda seen: seen["status"] not in {"queued", "running"})

    async def trains(self, job_id: str) -> dict[str, Any]:
        return await self.until(job_id, lambda seen: seen["stage"] == "training")

    def starts(self, run_id: str = "run") -> list[str]:
        """A line for each start of the run: its process and its GPU."""
        path = self.folder / f"{run_id}.starts"
        return path.read_text().splitlines() if path.exists() else []


Serving = Callable[..., Any]


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    """Opens a server over the same folder, as often as the test likes."""

    @asynccontextmanager
    async def opened(
        *, gpus: tuple[str | None, ...] = ("0",), command: list[str] | None = None, **how: Any
    ) -> AsyncIterator[Server]:
        jobs = Jobs(tmp_path / "jobs.sqlite", now=time.time)
        machine = Machine(command or [sys.executable, "-S", str(SCRIPTED)], gpus, tmp_path, grace_seconds=5)
        runner = Runner(jobs, machine, clock=time.monotonic, **how)
        api = GpuServerApi(jobs, runner, KEY, len(gpus), time.time)
        running = asyncio.create_task(runner.run())
        transport = httpx.ASGITransport(app=api.app())
        headers = {"Authorization": f"Bearer {KEY}"}
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://gpu", headers=headers) as http:
                yield Server(tmp_path, jobs, runner, http)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            jobs.close()

    return opened


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()
