"""SkyPilot's stand-in with a scripted machine, and the launcher with an SDK for it.

The SDK is the suite's own, since the real one is 96 packages. `LORA_TEST_SKYPILOT_PYTHON` names a Python that has the
real one: then the same tests run with that.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from lora_worker.launchers.skypilot.jobs import TaskShape, now_seconds
from lora_worker.launchers.skypilot.launcher import SkyPilotLauncher
from tests.integration.launchers.scenes import ScriptedScene
from tests.project import ROOT
from tests.skypilot_server import TOKEN, SkyPilotServer

MARK = "0123456789"
_SPEED = 5.0
"""What is over its time after five seconds there is so after one here."""


class SkyPilotScene(ScriptedScene):
    """An API server with one machine."""

    without_output = "a managed job has no output: its trainer reports by the run's own channel"

    def __init__(self, server: SkyPilotServer, folder: Path) -> None:
        super().__init__(folder)
        self.server = server
        self.python = python_with_sdk(folder)

    @classmethod
    @contextmanager
    def start(cls, folder: Path) -> Iterator[SkyPilotScene]:
        """The scene, until the context ends."""
        server = SkyPilotServer(folder, module="tests.handlers.scripted_machine", speed=_SPEED)
        try:
            yield cls(server, folder)
        finally:
            server.close()

    def launcher(
        self,
        http: httpx.AsyncClient | None = None,
        *,
        key: str | None = None,
        url: str | None = None,
        now: Callable[[], float] = now_seconds,
        **shape: Any,
    ) -> SkyPilotLauncher:
        given = TaskShape(**{"mark": MARK, "image": "ghcr.io/example/lora-trainer:1", **shape})
        token = f"sky_{key}" if key else TOKEN
        return SkyPilotLauncher(url or self.server.url, given, python=self.python, token=token, now=now)

    @contextmanager
    def outage(self) -> Iterator[None]:
        with self.server.outage():
            yield


def python_with_sdk(folder: Path) -> str:
    """The path of a Python that has an SDK: the real one where one is named, else one in `folder` with the suite's."""
    if real := os.environ.get("LORA_TEST_SKYPILOT_PYTHON"):
        return real
    path = folder / "python-with-sky"
    sdk = shlex.quote(str(ROOT / "tests" / "skypilot_sdk"))
    path.write_text(f'#!/bin/sh\nPYTHONPATH={sdk} exec {shlex.quote(sys.executable)} "$@"\n')
    path.chmod(0o755)
    return str(path)
