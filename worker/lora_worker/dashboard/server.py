"""Serves the dashboard until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator

import uvicorn

from lora_worker.dashboard.access import Access, make_token
from lora_worker.dashboard.app import make_app
from lora_worker.dashboard.board import Board
from lora_worker.errors import PortTakenError

_MAX_CONNECTIONS = 64
_STOP_SECONDS = 3


class _Server(uvicorn.Server):
    """A server that leaves signals to the command: uvicorn would raise them again at its end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def serve(
    board: Board, *, host: str, port: int, token: str | None, names: Iterable[str], ready: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        board: what the pages read.
        host: the address to listen at.
        port: its port; 0 means any free one.
        token: what opens the dashboard; None makes a new one.
        names: host names under which it may be called, beside localhost and addresses.
        ready: is called once with the dashboard's URL. It holds the token only if that is a new one: a token that
            was set is known, and what is printed may end in a log.

    Raises:
        PortTakenError: the port can't be opened.
    """
    listening = _listen(host, port)
    port = listening.getsockname()[1]
    is_known = token is not None
    token = token or make_token()
    app = make_app(board, Access(token, port), names)
    server = _Server(
        uvicorn.Config(
            app,
            # No access log: the URL with the token would stand in it.
            access_log=False,
            log_config=None,
            log_level="critical",
            server_header=False,
            ws="none",
            lifespan="off",
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
    )

    def stop() -> None:
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop)
    ready(f"http://{_in_url(host)}:{port}/" + ("" if is_known else f"?token={token}"))
    await server.serve(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
        text = f"the port {port} of {host} can't be opened ({reason}): choose another with --port, or --port 0 for any"
        raise PortTakenError(text) from None


def _in_url(host: str) -> str:
    """Write an address for a URL. One that stands for all addresses can't be opened: this machine's own can."""
    if host in {"0.0.0.0", "::", ""}:  # noqa: S104 - it is compared, not listened at
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
