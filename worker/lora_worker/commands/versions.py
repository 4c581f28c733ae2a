"""Commands about versions of models, and which of them is served under a stable name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_worker.commands.jobs import JobArgument
from lora_worker.commands.terminal import EXIT_FAILED, AsJson, command_group, print_lines, show, with_services

if TYPE_CHECKING:
    from lora_worker.database.version_rows import AliasMove, AliasRow, VersionFilter
    from lora_worker.services import Services
    from lora_worker.versions.listing import Family
    from lora_worker.versions.promotion import Promoted

commands = command_group()

AliasArgument = Annotated[str, typer.Argument(metavar="NAME", help="An alias, with or without :live.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until the endpoint answers with it.")]
WaitSeconds = Annotated[float, typer.Option(min=0, help="How long --wait waits at most.")]


@commands.command()
def models(
    of: Annotated[str, typer.Argument(metavar="[ID]", help="A dataset, a model or a job; empty: the newest.")] = "",
    user: Annotated[str, typer.Option(help="Only models of the user with this id or mail address.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many versions are listed.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the versions of models with what they gained on their base; the best of each is marked, and why."""
    from lora_worker.commands.version_views import print_models, values_of

    async def work(services: Services) -> tuple[list[Family], list[AliasRow]]:
        from lora_worker.commands.references import find_job, find_user
        from lora_worker.versions.listing import families_of, list_versions

        user_id = await find_user(services.queue, user) if user else None
        wanted: VersionFilter = {
            # A whole id may be a dataset's or a model's: `find_job` returns it as it is.
            "of": str(await find_job(services.queue, of)) if of else None,
            "user_id": str(user_id) if user_id else None,
            "limit": limit,
        }
        versions = await list_versions(services.queue, wanted)
        aliases = await services.queue.list_training_aliases(None, user_id)
        named = {name for version in versions for name in version.row["aliases"]}
        return families_of(versions), [alias for alias in aliases if alias["name"] in named or not of]

    families, aliases = with_services(work)
    value = values_of(families, aliases)
    show(value, as_json=as_json, text=lambda console: print_models(families, aliases, console))


@commands.command()
def promote(
    job: JobArgument,
    name: Annotated[
        str, typer.Option("--as", help="The alias; empty: the one of its model, or its dataset's name.")
    ] = "",
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also a version that made the model worse on general text.")
    ] = False,
    wait: Wait = False,
    wait_seconds: WaitSeconds = 900,
    as_json: AsJson = False,
) -> None:
    """Have the alias NAME:live lead to the adapter of a job. Of two that do so at once one is told to look again."""

    async def work(services: Services) -> tuple[Promoted, AliasRow]:
        from lora_worker.commands.references import find_job
        from lora_worker.versions.promotion import promote as move

        job_id = await find_job(services.queue, job)
        return await _waited(
            services, await move(services, job_id, name=name or None, anyway=anyway, by=_operator()), wait, wait_seconds
        )

    _tell(with_services(work), waited=wait, as_json=as_json)


@commands.command()
def rollback(name: AliasArgument, wait: Wait = False, wait_seconds: WaitSeconds = 900, as_json: AsJson = False) -> None:
    """Have an alias lead to its target before; once more: to the one before that."""

    async def work(services: Services) -> tuple[Promoted, AliasRow]:
        from lora_worker.versions.promotion import roll_back

        return await _waited(services, await roll_back(services, name, by=_operator()), wait, wait_seconds)

    _tell(with_services(work), waited=wait, as_json=as_json)


@commands.command()
def aliases(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="One alias, with its moves; empty: all.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the aliases and where they lead; of one: who moved it, when, from what and to what."""
    from lora_worker.commands.version_views import print_aliases, print_moves

    async def work(services: Services) -> tuple[list[AliasRow], list[AliasMove]]:
        from lora_worker.versions.promotion import find_alias

        if not name:
            return await services.queue.list_training_aliases(), []
        alias = await find_alias(services, name)
        return [alias], await services.queue.training_alias_history(alias["name"])

    found, moves = with_services(work)
    if name:
        show({**found[0], "moves": moves}, as_json=as_json, text=lambda console: print_moves(found[0], moves, console))
    else:
        show(found, as_json=as_json, text=lambda console: print_aliases(found, console))


async def _waited(services: Services, promoted: Promoted, wait: bool, wait_seconds: float) -> tuple[Promoted, AliasRow]:
    from lora_worker.commands.alias_waiting import wait_until_served

    if not wait:
        return promoted, promoted.alias
    alias = await wait_until_served(
        services.queue, promoted.alias, seconds=wait_seconds, say=lambda text: typer.echo(text, err=True)
    )
    return promoted, alias


def _tell(done: tuple[Promoted, AliasRow], *, waited: bool, as_json: bool) -> None:
    """Print where an alias leads and stands; exits with 1 where it was waited for and is not live."""
    from lora_worker.versions.promotion import alias_value

    promoted, alias = done
    value: dict[str, Any] = {**alias_value(alias), "before_job_id": promoted.before}
    led = f", and led to job {promoted.before} before" if promoted.before else ""
    lines = [f"{value['called']} leads to {promoted.label}{led}", f"it {value['standing']}"]
    show(value, as_json=as_json, text=lambda console: print_lines(console, lines))
    if waited and not alias["served"]:
        raise typer.Exit(EXIT_FAILED)


def _operator() -> str:
    """Return who moves an alias, as its history shall say: the name of the account and of the machine."""
    import getpass
    import socket

    try:
        who = getpass.getuser()
    except (KeyError, OSError):
        # A container's user may have no name.
        who = "somebody"
    return f"{who} on {socket.gethostname()}"[:200]
