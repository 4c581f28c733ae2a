"""The launchers, each with its other side, and how jobs of one meaning are asked for there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import httpx

from lora_worker.launchers.base import EndCause, Launcher, LaunchState, Observation
from lora_worker.launchers.gpu_server.launcher import GpuServerLauncher
from lora_worker.launchers.runpod.launcher import RunPodLauncher
from sandbox.gpu_server import LocalGpuServer
from sandbox.runpod import LocalRunPod

WRONG_KEY = "wrong-key-of-the-tests-0123456789abcdef"


class Scene(ABC):
    """A launcher's other side."""

    acts: ClassVar[dict[str, dict[str, Any]]]
    """The input of a job that does this."""
    without_output: ClassVar[str | None] = None
    """Why its launches show no output, where they don't; what a trainer says comes by the run's own channel then."""
    ends: ClassVar[Mapping[str, tuple[LaunchState, EndCause]]] = {
        "complete": (LaunchState.COMPLETED, EndCause.UNKNOWN),
        "raise": (LaunchState.FAILED, EndCause.RAISED),
    }
    """How the launch of such a job ends. A cloud that knows no such ends says by a comment what it has instead."""

    @abstractmethod
    def launcher(self, http: httpx.AsyncClient, *, key: str | None = None, url: str | None = None) -> Launcher:
        """The launcher of this side, with its key and address or with others."""

    @abstractmethod
    @contextmanager
    def outage(self) -> Iterator[None]:
        """Nobody answers at the address."""

    def has_ended(self, act: str, seen: Observation) -> bool:
        """Whether the launch of such a job is over."""
        return seen.state is self.ends[act][0]

    def payload(self, act: str) -> dict[str, Any]:
        """The request of a new run that does this."""
        return {"run_id": uuid4().hex, **self.acts[act]}


class RunPodScene(Scene):
    """RunPod's job API and its SDK's worker."""

    acts: ClassVar = {
        "complete": {"do": "answer", "with": {"status": "completed"}},
        "raise": {"do": "raise"},
        "linger": {"do": "report_and_wait"},
        "die": {"do": "die"},
    }

    def __init__(self, runpod: LocalRunPod) -> None:
        self.runpod = runpod

    def launcher(self, http: httpx.AsyncClient, *, key: str | None = None, url: str | None = None) -> Launcher:
        return RunPodLauncher(url or self.runpod.api_url, key or self.runpod.api_key, http=http)

    @contextmanager
    def outage(self) -> Iterator[None]:
        with self.runpod.outage():
            yield


class ScriptedScene(Scene):
    """A side where the trainer plays what its request says, and notes each of its starts in a file of `folder`."""

    acts: ClassVar = {
        "complete": {"play": ["complete"]},
        "raise": {"play": ["fail"]},
        "linger": {"play": ["linger"]},
        "die": {"play": ["die"]},
    }
    gpu_type: ClassVar = "L4"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def payload(self, act: str) -> dict[str, Any]:
        made = super().payload(act)
        starts = str(self._folder / f"{made['run_id']}.starts")
        return {**made, "gpu_config": {"type": self.gpu_type, "count": 1}, "starts": starts}

    @staticmethod
    def starts_of(payload: dict[str, Any]) -> list[list[str]]:
        """The words of each start that the run's trainer has noted, such as those of `scripted_machine`."""
        path = Path(payload["starts"])
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


class GpuServerScene(ScriptedScene):
    """A GPU server with a scripted trainer."""

    def __init__(self, server: LocalGpuServer, folder: Path) -> None:
        super().__init__(folder)
        self.server = server

    def launcher(self, http: httpx.AsyncClient, *, key: str | None = None, url: str | None = None) -> Launcher:
        return GpuServerLauncher(url or self.server.url, key or self.server.key, http=http)

    @contextmanager
    def outage(self) -> Iterator[None]:
        self.server.stop()
        try:
            yield
        finally:
            self.server.start()
