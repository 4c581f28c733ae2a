"""Vertex AI's stand-in with a scripted machine, and the launcher with Google's own credentials for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from google.oauth2.service_account import Credentials

from lora_worker.launchers.base import Launcher
from lora_worker.launchers.vertex.api import VertexApi
from lora_worker.launchers.vertex.jobs import JobShape
from lora_worker.launchers.vertex.launcher import VertexLauncher
from lora_worker.launchers.vertex.logs import JobLogs
from lora_worker.launchers.vertex.tokens import SCOPES, GoogleTokens
from tests.integration.launchers.scenes import ScriptedScene
from tests.vertex_server import VertexServer

MARK = "0123456789"
_SPEED = 5.0
"""What is over its time after five seconds there is so after one here."""


async def _no_pause(seconds: float) -> None:
    pass


class FileTokens(GoogleTokens):
    """Tokens of a key's file, without a look at the environment."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def _load(self, request: Any) -> Any:
        return Credentials.from_service_account_file(str(self._path), scopes=list(SCOPES))


class VertexScene(ScriptedScene):
    """A region of Vertex AI with one machine."""

    without_output = "a custom job has no output: its trainer reports by the run's own channel"

    def __init__(self, server: VertexServer, folder: Path) -> None:
        super().__init__(folder)
        self.server = server

    @classmethod
    @contextmanager
    def start(cls, folder: Path) -> Iterator[VertexScene]:
        """The scene, until the context ends."""
        server = VertexServer(folder, module="tests.handlers.scripted_machine", speed=_SPEED)
        try:
            yield cls(server, folder)
        finally:
            server.close()

    def launcher(
        self, http: httpx.AsyncClient, *, key: str | None = None, url: str | None = None, **shape: Any
    ) -> Launcher:
        tokens = FileTokens(self.server.wrong_key_file if key else self.server.key_file)
        given = {"mark": MARK, "image": "us-docker.pkg.dev/p/r/trainer:1", "strategy": "SPOT", "bucket": "checkpoints",
                 "boot_disk_gb": 200, "service_account": "", "network": ""} | shape  # fmt: skip
        return VertexLauncher(
            url or self.server.endpoint,
            VertexApi(http, tokens, concurrency=20),
            JobShape(**given),
            JobLogs(http, tokens, url=self.server.url, pause=_no_pause),
            now=self.server.now,
        )

    @contextmanager
    def outage(self) -> Iterator[None]:
        with self.server.outage():
            yield
