"""The part of the hub's API that a download needs, on this machine. It can break a download off."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "README.md": b"---\nlicense: mit\n---\n",
    "model-1.safetensors": os.urandom(1 << 20) * 2,
    "model.safetensors": os.urandom(1 << 20) * 32,  # the client writes pieces of 10 MB
    "pytorch_model.bin": b"not wanted",
    "consolidated.safetensors": b"the same weights in another layout",
    "original/consolidated.00.safetensors": b"and once more",
    "original/params.json": b"{}",
}
NOT_WANTED = {"pytorch_model.bin", "consolidated.safetensors", "original/consolidated.00.safetensors"}
NOT_WANTED |= {"original/params.json"}
WANTED_BYTES = sum(len(content) for name, content in FILES.items() if name not in NOT_WANTED)
PARTIAL = re.compile(r"bytes=(\d+)-")


class Hub(BaseHTTPRequestHandler):
    """Serves the repository `org/model`."""

    served: list[tuple[str, str | None]]
    """Each file that was sent, with the range that was asked for."""
    break_after: int | None
    """How many bytes of the weights are sent before the connection breaks, once; None: it never breaks."""
    hold: threading.Event | None = None
    """If set, the weights are sent only in part until this event happens."""
    begun = threading.Event()
    """Happens when the first part of weights that are held was sent."""

    def do_GET(self) -> None:
        if self.path.startswith(f"/api/models/org/model/tree/{COMMIT}"):
            return self._answer(self._tree(), "application/json")
        if self.path.startswith("/api/models/org/model"):
            return self._answer(self._description(), "application/json")
        if found := re.fullmatch(rf"/org/model/resolve/{COMMIT}/(.+)", self.path):
            return self._file(found[1])
        return self._answer(b"", "text/plain", 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _tree(self) -> bytes:
        return json.dumps(
            [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in FILES.items()
            ]
        ).encode()

    def _description(self) -> bytes:
        files = [{"rfilename": name, "size": len(content)} for name, content in FILES.items()]
        return json.dumps({"id": "org/model", "sha": COMMIT, "siblings": files, "private": False}).encode()

    def _file(self, name: str) -> None:
        content, wanted = FILES[name], self.headers.get("Range")
        begin = int(PARTIAL.match(wanted)[1]) if wanted else 0
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if wanted:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        body, status = content[begin:], 206 if wanted else 200
        if self.command == "GET":
            type(self).served.append((name, wanted))
            if name == "model.safetensors" and type(self).break_after is not None:
                cut, type(self).break_after = type(self).break_after, None
                self._answer(body, "application/octet-stream", status, headers, cut)
                self.close_connection = True
                return
        self._answer(body, "application/octet-stream", status, headers)

    def _answer(
        self, body: bytes, kind: str, status: int = 200, headers: dict[str, Any] | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "GET":
            return
        if self.hold is not None and len(body) > (16 << 20):
            self.wfile.write(body[: len(body) // 2])
            self.begun.set()
            self.hold.wait()
            with suppress(ConnectionError):  # the client was killed meanwhile
                self.wfile.write(body[len(body) // 2 : cut])
            return
        self.wfile.write(body[:cut])

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""


@contextmanager
def serve_hub() -> Iterator[str]:
    """Serve it until the context ends; yields its address."""
    Hub.served, Hub.break_after, Hub.hold, Hub.begun = [], None, None, threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        if Hub.hold is not None:
            Hub.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()


def hub_environment(hub: str, home: Path) -> dict[str, str]:
    """The variables with which the hub's library downloads from `hub`, and keeps its caches below `home`."""
    return {
        "HF_ENDPOINT": hub,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(home),
        "NO_PROXY": "127.0.0.1",
    }
