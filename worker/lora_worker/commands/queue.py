"""Commands that look at the queue and act on it: `status`, `resume`."""

from __future__ import annotations

from typing import Annotated

import typer

from lora_worker.commands.terminal import AsJson, command_group, show, with_services

commands = command_group()


@commands.command()
def status(as_json: AsJson = False) -> None:
    """Show the queue, the workers and the live runs."""
    from lora_worker.commands.status import print_status

    health = with_services(lambda services: services.queue.health())
    show(health, as_json=as_json, text=lambda console: print_status(health, console))


@commands.command()
def resume(
    name: Annotated[str, typer.Argument(help="A base model or an endpoint; empty: all held jobs.")] = "",
) -> None:
    """Release held jobs at once, after the reason why they were held is repaired."""
    resumed = with_services(lambda services: services.queue.resume_training(name or None))
    for held in resumed:
        typer.echo(f"{held['jobs']} jobs may go: {held['name'] or 'the image'} at {held['endpoint']}")
    if not resumed:
        typer.echo("nothing is held" + (f" for {name}" if name else ""))
