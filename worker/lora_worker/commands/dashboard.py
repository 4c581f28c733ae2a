"""The command `lora-worker dashboard`: a page that shows the queue and acts on it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from lora_worker.commands.terminal import AsJson, command_group, require_packages, with_services

if TYPE_CHECKING:
    from lora_worker.services import Services

commands = command_group()

_PACKAGES = ("starlette", "uvicorn", "jinja2", "itsdangerous")


@commands.command()
def dashboard(
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0: any free one.")] = 8642,
    allow_name: Annotated[
        list[str] | None,
        typer.Option(help="Host name under which the page is opened; localhost and addresses always may."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve a page that shows queue, runs, spend and workers, until Ctrl-C; prints the URL that opens it."""
    require_packages("the dashboard", _PACKAGES, "dashboard")

    from lora_worker.dashboard.board import Board
    from lora_worker.dashboard.server import serve

    def ready(url: str) -> None:
        if as_json:
            typer.echo(json.dumps({"url": url}))
            return
        known = "" if "?token=" in url else "?token= and the value of LORA_WORKER_DASHBOARD_TOKEN"
        typer.echo(f"Open {url}{known}")
        if not _is_loopback(host):
            text = f"{host} can be reached from other machines, without encryption: an SSH tunnel to 127.0.0.1 is safer"
            typer.echo(text, err=True)

    async def work(services: Services) -> None:
        secret = services.settings.dashboard_token
        token = secret.get_secret_value() if secret else None
        board = Board(services.queue, services.logs, services.evaluations)
        await serve(board, host=host, port=port, token=token, names=allow_name or (), ready=ready)

    with_services(work)


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
