"""Commands that look at the queue and act on it: `status`, `hold`, `resume`, `drain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_worker.commands.terminal import (
    EXIT_FAILED,
    EXIT_USAGE,
    AsJson,
    command_group,
    print_lines,
    refuse,
    show,
    with_services,
)

if TYPE_CHECKING:
    from uuid import UUID

    from lora_worker.commands.status import ShownPlace
    from lora_worker.database.queue_health import QueueHealth
    from lora_worker.services import Services

commands = command_group()

UserOption = Annotated[str, typer.Option(help="Id or mail address of a user; empty: all.")]


@commands.command()
def status(as_json: AsJson = False) -> None:
    """Show the queue: why each job waits, live runs, failures of the last day, spend of today, workers."""
    from lora_worker.commands.status import draw_status, look_at_places

    async def work(services: Services) -> tuple[QueueHealth, list[ShownPlace]]:
        return await services.queue.health(), await look_at_places(services)

    health, places = with_services(work)
    value = {**health, "places": places}
    show(value, as_json=as_json, text=lambda console: console.print(draw_status(health, places)))


@commands.command()
def hold(
    user: UserOption = "",
    reason: Annotated[str, typer.Option(help="Stands with each waiting job, for other operators.")] = "",
    as_json: AsJson = False,
) -> None:
    """Let nothing new be claimed, of one user or of all, until `resume`. Live runs go on."""

    async def work(services: Services) -> UUID | None:
        chosen = await _user(services, user)
        await services.queue.hold_training(chosen, reason or None)
        return chosen

    chosen = with_services(work)
    value = {"user_id": str(chosen) if chosen else None, "reason": reason or None, "held": True}
    again = "lora-worker resume" + (f" --user {user}" if user else "")
    whose = f"jobs of user {user}" if user else "all jobs"
    line = f"held: {whose}; live runs go on; `{again}` lets them go again"
    show(value, as_json=as_json, text=lambda console: console.print(line, soft_wrap=True))


@commands.command()
def resume(
    name: Annotated[
        str, typer.Argument(help="A base model or an endpoint; empty: all that failures held, and the whole queue.")
    ] = "",
    user: Annotated[str, typer.Option(help="Release what `hold --user` held, and nothing else.")] = "",
    as_json: AsJson = False,
) -> None:
    """Release held jobs at once: what `hold` held, and what waits for a base model or an endpoint to work again.

    Without an argument the users that `hold --user` held stay held.
    """
    if name and user:
        raise refuse("give a base model or an endpoint, or --user, and not both", EXIT_USAGE)

    async def work(services: Services) -> dict[str, Any]:
        chosen = await _user(services, user)
        breakers = [] if user else await services.queue.resume_training(name or None)
        released = False if name else await services.queue.release_training(chosen)
        left = (await services.queue.health())["held"]["operator_holds"]
        return {"breakers": breakers, "released": released, "still_held": left}

    done = with_services(work)
    lines = [
        f"{one['jobs']} jobs may go: {one['name'] or 'the image'} at {one['endpoint']}" for one in done["breakers"]
    ]
    if done["released"]:
        lines.append(f"jobs of user {user} may go" if user else "the queue may go")
    if not lines:
        lines.append("nothing is held" + (f" for {name or 'user ' + user}" if name or user else ""))
    lines += [
        f"still held: {'user ' + one['user_id'] if one['user_id'] else 'all jobs'}"
        + (f" ({one['reason']})" if one["reason"] else "")
        for one in done["still_held"]
    ]
    show(done, as_json=as_json, text=lambda console: print_lines(console, lines))


@commands.command()
def drain(
    worker: Annotated[str, typer.Argument(help="A worker's name, as `status` shows it; empty: all that run.")] = "",
    as_json: AsJson = False,
) -> None:
    """Let workers take nothing new, and end by themselves when their runs have ended. New ones are not drained."""
    drained = with_services(lambda services: services.queue.drain_training_workers(worker or None))
    lines = [
        f"{one['name']} is a single pass, which ends by itself: take it out of cron"
        if one["single_pass"]
        else f"{one['name']} takes nothing new, and ends after {one['held']} runs"
        for one in drained
    ]
    if not lines:
        lines = [f"no worker runs that is named {worker}" if worker else "no worker runs"]
    show(
        drained,
        as_json=as_json,
        text=lambda console: print_lines(console, lines),
    )
    if worker and not drained:
        raise typer.Exit(EXIT_FAILED)


async def _user(services: Services, text: str) -> UUID | None:
    from lora_worker.commands.references import find_user

    return await find_user(services.queue, text) if text else None
