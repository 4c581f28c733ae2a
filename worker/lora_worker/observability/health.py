"""The health endpoints /healthz, /readyz and /metrics, on a separate port and outside the event loop.

Launchers that tell of changed runs call /wake/<run>.<signature> there. What they send is thrown away: it is a hint, and
what counts is what the launcher answers when it is asked.

Anybody who can reach the port may call it. So the number of connections, their duration and the size of a request are
limited, and an incomplete request does not delay others.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import io
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import REGISTRY, make_wsgi_app
from waitress import create_server  # type: ignore[import-untyped]
from waitress.channel import HTTPChannel  # type: ignore[import-untyped]
from waitress.parser import HTTPRequestParser  # type: ignore[import-untyped]

from lora_worker.configuration.settings import Settings
from lora_worker.errors import PortTakenError
from lora_worker.observability.healthcheck import socket_name
from lora_worker.observability.liveness import Pulse

Problem = Callable[[], str | None]
Wake = Callable[[str], int]
"""Takes what stands behind /wake/, and returns the status of the answer."""

_CONNECTION_SECONDS = 10.0
"""How long a connection may stay open, whether its request is complete or not."""

_MAX_CONNECTIONS = 32
_MAX_HEADER_BYTES = 8192
_MAX_BODY_BYTES = 1024
_MAX_WAKE_BYTES = 10_000_000
"""A launcher sends the run's whole result along; none of it is kept."""
_WAKE = "/wake/"
_WAKE_TEXTS = {204: "No Content", 404: "Not Found", 429: "Too Many Requests"}
_STOP_SECONDS = 2.0

# waitress logs a warning whenever more requests wait than it has threads. Any caller could flood the log that way.
logging.getLogger("waitress").setLevel(logging.ERROR)


class _Discarded:
    """The body of a wake-up, thrown away as it comes."""

    error = None

    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def completed(self) -> bool:
        return self._left <= 0

    def received(self, data: bytes) -> int:
        taken = min(len(data), self._left)
        self._left -= taken
        return taken

    def getfile(self) -> io.BytesIO:
        return io.BytesIO()

    def getbuf(self) -> _Discarded:
        return self

    def close(self) -> None:
        """Nothing is kept, so nothing is to be closed."""

    def __len__(self) -> int:
        return 0


class _Parser(HTTPRequestParser):  # type: ignore[misc]
    """Reads requests; the body of a wake-up may be large, and is never stored."""

    adj: Any

    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        if str(self.path).startswith(_WAKE) and self.content_length > 0 and not self.chunked:
            limits = copy.copy(self.adj)
            limits.max_request_body_size = _MAX_WAKE_BYTES
            self.adj = limits
            self.body_rcv = _Discarded(self.content_length)


class _Channel(HTTPChannel):  # type: ignore[misc]
    """A connection that is closed after `_CONNECTION_SECONDS`. The time-out of waitress restarts with each byte."""

    parser_class = _Parser

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._opened_at = time.monotonic()

    def readable(self) -> bool:
        # The server's loop calls this in every iteration, at least once a second.
        if self.connected and time.monotonic() - self._opened_at > _CONNECTION_SECONDS:
            self.handle_close()
        return bool(self.connected and super().readable())

    def writable(self) -> bool:
        return bool(self.connected and super().writable())


class HealthServer:
    """Serves /healthz (the process is alive), /readyz (the worker does its work) and /metrics, in its own threads.

    With the port None it listens on a Unix socket instead, which `observability.healthcheck` finds by its name.
    `alive` and `ready` return what is wrong, or None. They are called from these threads, and so is `wake`.

    Raises:
        PortTakenError: the port can't be opened.
    """

    def __init__(
        self, host: str, port: int | None, *, alive: Problem, ready: Problem, wake: Wake | None = None
    ) -> None:
        self._wake = wake
        self._checks = {"/healthz": alive, "/readyz": ready}
        self._metrics = make_wsgi_app(REGISTRY)
        listener = _listen_locally() if port is None else _listen(host, port)
        self.port: int | None = None if port is None else listener.getsockname()[1]
        self._connections: dict[int, Any] = {}
        self._server = create_server(
            self._answer,
            map=self._connections,
            sockets=[listener],
            threads=2,
            ident=None,
            # waitress also counts the listening socket and its internal trigger.
            connection_limit=_MAX_CONNECTIONS + 2,
            max_request_header_size=_MAX_HEADER_BYTES,
            max_request_body_size=_MAX_BODY_BYTES,
            log_socket_errors=False,
        )
        self._server.channel_class = _Channel
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="health", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stopped.is_set():
            # poll instead of select, which fails for file descriptors above 1,023.
            self._server.asyncore.loop(timeout=1, use_poll=True, map=self._connections, count=1)

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start_response)
            return answer
        if path.startswith(_WAKE) and self._wake is not None and environ.get("REQUEST_METHOD") == "POST":
            code = self._wake(path.removeprefix(_WAKE))
            start_response(f"{code} {_WAKE_TEXTS[code]}", [("content-length", "0")])
            return []
        check = self._checks.get(path)
        if check is None:
            start_response("404 Not Found", [("content-type", "text/plain")])
            return [b"not found\n"]
        problem = check()
        status = "503 Service Unavailable" if problem else "200 OK"
        start_response(status, [("content-type", "application/json")])
        return [json.dumps({"ok": problem is None, "problem": problem}).encode() + b"\n"]

    def stop(self) -> None:
        """Close the port. Waits at most `_STOP_SECONDS` for requests that are being answered."""
        self._stopped.set()
        self._server.pull_trigger()
        self._thread.join(timeout=_STOP_SECONDS / 2)
        # The connections are closed here and not by the loop: it could close the trigger while this method uses it.
        if not self._thread.is_alive():
            self._server.task_dispatcher.shutdown(timeout=_STOP_SECONDS / 2)
            self._server.asyncore.close_all(self._connections)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=16)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise PortTakenError(
            f"the port {port} can't be opened ({reason}): set LORA_WORKER_HTTP_PORT to a free one, or to 0 "
            "for none, and LORA_WORKER_HTTP_HOST to an address of this machine"
        ) from None


def _listen_locally() -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(socket_name(os.getpid()))
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise PortTakenError(
            f"the socket for `lora-worker healthcheck` can't be opened ({error.strerror}): set LORA_WORKER_HTTP_PORT"
        ) from None
    return listener


@asynccontextmanager
async def serving_health(
    settings: Settings, *, alive: Problem, ready: Problem, wake: Wake | None = None
) -> AsyncIterator[None]:
    """Serve the endpoints until the context ends; without a port, on Linux, for `lora-worker healthcheck` alone.

    /healthz watches the running event loop, too.

    Raises:
        PortTakenError: the port can't be opened.
    """
    if not settings.http_port and sys.platform != "linux":
        yield
        return
    pulse = Pulse()
    port = settings.http_port or None
    server = HealthServer(settings.http_host, port, alive=lambda: pulse.problem or alive(), ready=ready, wake=wake)
    beating = asyncio.create_task(pulse.keep(), name="pulse")
    try:
        yield
    finally:
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating
        server.stop()
