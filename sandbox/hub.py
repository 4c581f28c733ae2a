"""The part of huggingface.co that a download needs, on this machine: it serves folders as models.

    with LocalHub.start({"Qwen/Qwen3-8B": folder}) as hub:
        LocalRunPod.start(env=hub.env, …)

So a deployment can be tried to its end with the names of real models and without the internet.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

_ABOUT = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True)
class _Model:
    name: str
    folder: Path

    def files(self) -> dict[str, Path]:
        return {str(path.relative_to(self.folder)): path for path in self.folder.rglob("*") if path.is_file()}

    @property
    def commit(self) -> str:
        """The model's only revision, named after its content."""
        return hashlib.sha1("".join(map(_digest, sorted(self.files().values()))).encode()).hexdigest()  # noqa: S324


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, models: Mapping[str, _Model], *connection: Any) -> None:
        self._models = models
        super().__init__(*connection)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := _ABOUT.fullmatch(path):
            self._tell(found[1], found[2])
        elif found := _FILE.fullmatch(path):
            self._send_file(found[1], found[2])
        else:
            self._refuse("EntryNotFound")

    do_HEAD = do_GET  # noqa: N815 - the library wants this name

    def _tell(self, name: str, what: str | None) -> None:
        model = self._models.get(name)
        if model is None:
            self._refuse("RepoNotFound")
            return
        sizes = {file: path.stat().st_size for file, path in model.files().items()}
        if what == "tree":
            answer: Any = [
                {"type": "file", "path": file, "size": size, "oid": _digest(model.folder / file)[:40]}
                for file, size in sizes.items()
            ]
        else:
            siblings = [{"rfilename": file, "size": size} for file, size in sizes.items()]
            answer = {"id": name, "sha": model.commit, "siblings": siblings, "private": False}
        self._answer(json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send_file(self, name: str, file: str) -> None:
        model = self._models.get(name)
        path = model.files().get(file) if model is not None else None
        if model is None or path is None:
            self._refuse("RepoNotFound" if model is None else "EntryNotFound")
            return
        content, status = path.read_bytes(), HTTPStatus.OK
        headers = {"ETag": f'"{_digest(path)}"', "X-Repo-Commit": model.commit, "Accept-Ranges": "bytes"}
        if wanted := _RANGE.fullmatch(self.headers.get("Range", "")):
            begin, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {begin}-{last}/{len(content)}"
            content, status = content[begin : last + 1], HTTPStatus.PARTIAL_CONTENT
        self._answer(content, headers, status)

    def _refuse(self, code: str) -> None:
        self._answer(b"", {"X-Error-Code": code}, HTTPStatus.NOT_FOUND)

    def _answer(self, body: bytes, headers: Mapping[str, str], status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


class LocalHub:
    """A hub on this machine. `LocalHub.start` starts one; the end of its context stops it."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, name="local-hub", daemon=True)
        self.url = f"http://127.0.0.1:{server.server_port}"

    @classmethod
    def start(cls, models: Mapping[str, Path]) -> Self:
        """Serve each folder as the model of that name, `organisation/model`."""
        known = {name: _Model(name, folder) for name, folder in models.items()}
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, known))
        hub = cls(server)
        hub._thread.start()
        return hub

    @property
    def env(self) -> dict[str, str]:
        """The environment with which the hub's library downloads from here."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def stop(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
