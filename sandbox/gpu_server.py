"""`lora-worker gpu-server` on this machine, which may be killed and started again at the same address."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from sandbox.processes import Child, free_ports, own_environment, start_child, wait_until

_STOP_SECONDS = 30


class LocalGpuServer:
    """A server with its own folder. `trainer` is the module that each job's process runs; None: the trainer's own.

    `env` is added to the environment of the server, and so of each trainer. `gpus` trainers run at once, on the CPU.
    """

    def __init__(self, folder: Path, env: Mapping[str, str], *, trainer: str | None = None, gpus: int = 1) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.key = secrets.token_urlsafe(32)
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self._env = {**own_environment(), **env, "LORA_WORKER_GPU_SERVER_KEY": self.key}
        self._module = trainer
        self._gpus = ",".join(["cpu"] * gpus)
        self._child: Child | None = None

    def environment(self) -> dict[str, str]:
        """The settings of a worker that launches here."""
        return {
            "LORA_WORKER_LAUNCHER": "gpu-server",
            "LORA_WORKER_GPU_SERVER_URL": self.url,
            "LORA_WORKER_GPU_SERVER_KEY": self.key,
        }

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            ChildFailedError: it ended, or did not answer.
        """
        another = f"gpu_server.MODULE = {self._module!r}; " if self._module else ""
        code = f"from lora_worker.commands import cli, gpu_server; {another}cli.main()"
        options = ["--port", str(self.port), "--data", self.folder / "data", "--grace-seconds", "5", "--json"]
        options += ["--gpus", self._gpus]
        self._child = start_child(
            [sys.executable, "-c", code, "gpu-server", *options],
            name="The GPU server",
            log=self.folder / "gpu-server.log",
            env=self._env,
        )
        wait_until(self._answers, self._child)

    def kill(self) -> None:
        """SIGKILL to the server alone: its trainers notice by themselves."""
        if self._child is not None:
            self._child.process.kill()
            self._child.process.wait()

    def trainers(self) -> list[int]:
        """The ids of the jobs' processes that run now."""
        if self._child is None or self._child.returncode is not None:
            return []
        return [
            int(pid) for pid in Path(f"/proc/{self._child.pid}/task/{self._child.pid}/children").read_text().split()
        ]

    def stop(self) -> None:
        """SIGTERM, and then whatever is left."""
        if self._child is not None:
            self._child.stop(patience_seconds=_STOP_SECONDS)

    def log(self) -> str:
        """What the server has printed."""
        return (self.folder / "gpu-server.log").read_text()

    def call(self, method: str, path: str) -> httpx.Response:
        """A call with the key."""
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.request(method, f"{self.url}{path}", headers=headers, timeout=30, trust_env=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False
