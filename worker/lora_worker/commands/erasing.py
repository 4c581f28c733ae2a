"""The command `erase-user`: what is known of a user goes, files and rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from lora_worker.commands.terminal import (
    EXIT_FAILED,
    AsJson,
    command_group,
    confirm_or_exit,
    refuse_unattended,
    show,
    with_services,
)

if TYPE_CHECKING:
    from lora_worker.services import Services
    from lora_worker.submission.erasures import Erasure

commands = command_group()


@commands.command(name="erase-user")
def erase_user(
    user: Annotated[str, typer.Argument(help="Id or mail address; an id also of an account that is gone already.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    wait_seconds: Annotated[float, typer.Option(min=0, help="How long to wait for GPUs to be stopped.")] = 300,
    as_json: AsJson = False,
) -> None:
    """Stop the runs of a user, and erase datasets, adapters, logs and rows (docs/costs.md). The account stays."""
    if not yes:
        refuse_unattended("to erase a user give --yes: nobody can be asked here")
    done = with_services(lambda services: _erase(services, user, wait_seconds, asks=not yes))
    answer = {
        "user_id": str(done.user_id),
        "stopped_jobs": done.stopped_jobs,
        "files": done.files,
        "rows": done.rows,
        "erased": done.reason is None,
        "reason": done.reason,
    }
    show(answer, as_json=as_json, text=lambda console: console.print(_words(done)))
    if done.reason is not None:
        raise typer.Exit(EXIT_FAILED)


async def _erase(services: Services, user: str, wait_seconds: float, *, asks: bool) -> Erasure:
    from lora_worker.commands.references import find_user
    from lora_worker.submission.erasures import erase_user as erase

    user_id = await find_user(services.queue, user)
    if asks:
        state = await services.queue.training_user_state(user_id)
        _ask(user_id, dict(state))
    return await erase(services, user_id, wait_seconds=wait_seconds, say=lambda text: typer.echo(text, err=True))


def _ask(user_id: UUID, state: dict[str, Any]) -> None:
    what = ", ".join(f"{count} {name}" for name, count in state.items() if count and name != "busy") or "nothing known"
    busy = f"; {state['busy']} of the runs have a GPU, which is stopped" if state["busy"] else ""
    confirm_or_exit(f"Erase user {user_id} ({what}{busy}), with all files?")


def _words(done: Erasure) -> str:
    if done.reason is not None:
        return f"not erased yet: {done.reason}"
    rows = ", ".join(f"{count} of {table}" for table, count in done.rows.items()) or "no rows"
    return f"erased: {done.files} files, {rows}. The account stays: delete it in the project's page of users."
