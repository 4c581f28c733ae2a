"""Opens a port, and serves an application there until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import uvicorn

from lora_worker.errors import PortTakenError

if TYPE_CHECKING:
    from starlette.applications import Starlette

_STOP_SECONDS = 3


class _Server(uvicorn.Server):
    """A server that leaves signals to the command: uvicorn would raise them again at its end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """Open a port; 0 means any free one.

    Raises:
        PortTakenError: it can't be opened.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
        text = f"the port {port} of {host} can't be opened ({reason}): choose another with --port, or --port 0 for any"
        raise PortTakenError(text) from None


def url_of(listening: socket.socket, host: str) -> str:
    """Write the address of an open port as a URL."""
    return f"http://{_in_url(host)}:{listening.getsockname()[1]}"


async def serve_until_stopped(
    app: Starlette, listening: socket.socket, *, most_connections: int, ready: Callable[[], None]
) -> None:
    """Serve an application until SIGTERM or SIGINT; `ready` is called once, when it can be called."""
    server = _Server(
        uvicorn.Config(
            app,
            # No access log: URLs may hold a token.
            access_log=False,
            log_config=None,
            log_level="critical",
            server_header=False,
            ws="none",
            lifespan="off",
            limit_concurrency=most_connections,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
    )

    def stop() -> None:
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop)
    ready()
    await server.serve(sockets=[listening])


def _in_url(host: str) -> str:
    """Write an address for a URL. One that stands for all addresses can't be opened: this machine's own can."""
    if host in {"0.0.0.0", "::", ""}:  # noqa: S104 - it is compared, not listened at
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
