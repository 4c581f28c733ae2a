"""A server at one address of this machine, which can be closed and opened again, and can break connections."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from starlette.applications import Starlette

from sandbox.errors import SandboxError
from sandbox.runpod.wire import BreakableProtocol

_HOST = "127.0.0.1"


class Listener:
    """A server at one address, which can be closed and opened again at the same port."""

    def __init__(self, app: Starlette, port: int = 0) -> None:
        self._app = app
        self._socket: socket.socket | None = _listen(port)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{_HOST}:{self.port}"

    async def open(self) -> None:
        """Accept connections from now on."""
        listening, self._socket = self._socket or _listen(self.port), None
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app,
                http=BreakableProtocol,
                lifespan="off",
                log_level="critical",
                access_log=False,
                date_header=False,  # the REST API tells the time of the sandbox's clock
                timeout_keep_alive=75,
                timeout_graceful_shutdown=2,
            )
        )
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))
        while not self._server.started:  # noqa: ASYNC110 - uvicorn has a flag, not an event
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Finish the calls that have begun, and refuse connections from then on."""
        self._server.should_exit = True
        await self._serving


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((_HOST, port))
    except OSError as error:
        raise SandboxError(f"port {port} of {_HOST} can't be used ({error.strerror}); choose another") from None
