"""Serves the dashboard until SIGTERM or Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lora_worker.dashboard.access import Access, make_token
from lora_worker.dashboard.app import make_app
from lora_worker.dashboard.board import Board
from lora_worker.listening import listen, serve_until_stopped, url_of

_MAX_CONNECTIONS = 64


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
    listening = listen(host, port)
    is_known = token is not None
    token = token or make_token()
    app = make_app(board, Access(token, listening.getsockname()[1]), names)
    url = f"{url_of(listening, host)}/" + ("" if is_known else f"?token={token}")
    await serve_until_stopped(app, listening, most_connections=_MAX_CONNECTIONS, ready=lambda: ready(url))
