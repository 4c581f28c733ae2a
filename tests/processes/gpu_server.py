"""`lora-worker gpu-server` as a process of its own, which a test may kill and start again at the same address."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import httpx

from sandbox.processes import Child, free_ports, start_child, wait_until
from tests.project import ROOT

KEY = "gpu-server-key-of-the-tests-0123456789"


class GpuServer:
    """One server. `trainer` is the module that each job's process runs; None: the trainer's own."""

    def __init__(self, folder: Path, env: Mapping[str, str], *, trainer: str | None = None) -> None:
        self.folder = folder
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self._env = {**env, "LORA_WORKER_GPU_SERVER_KEY": KEY}
        self._module = trainer
        self._child: Child | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        code = "from lora_worker.commands import cli, gpu_server; "
        code += f"gpu_server.MODULE = {self._module!r}; cli.main()" if self._module else "cli.main()"
        command = [sys.executable, "-c", code, "gpu-server", "--port", str(self.port), "--data", self.folder / "data",
                   "--grace-seconds", "5", "--json"]  # fmt: skip
        self._child = start_child(
            command, name="the GPU server", log=self.folder / "gpu-server.log", cwd=ROOT, env=self._env
        )
        wait_until(self._answers, self._child)

    def kill(self) -> None:
        """SIGKILL to the server alone: its trainers notice by themselves."""
        if self._child is not None:
            self._child.process.kill()
            self._child.process.wait()

    def stop(self) -> None:
        """SIGTERM, and then whatever is left."""
        if self._child is not None:
            self._child.stop(patience_seconds=30)

    def log(self) -> str:
        """What the server has printed."""
        return (self.folder / "gpu-server.log").read_text()

    def call(self, method: str, path: str) -> httpx.Response:
        """A call with the key."""
        return httpx.request(method, f"{self.url}{path}", headers={"authorization": f"Bearer {KEY}"}, timeout=30)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=5).is_success
        except httpx.TransportError:
            return False
