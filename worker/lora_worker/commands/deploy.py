"""The commands `deploy …`: an endpoint and its volumes at RunPod, as a file describes them."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from lora_worker.commands import deploy_init, deploy_prefetch, deploy_smoke
from lora_worker.commands.deploy_access import say, specification_or_exit, with_api
from lora_worker.commands.terminal import (
    EXIT_CHANGES_NEEDED,
    AsJson,
    command_group,
    confirm_or_exit,
    make_console,
    refuse,
    refuse_unattended,
    show,
)

if TYPE_CHECKING:
    from rich.console import Console

    from lora_worker.deployment.planning import Plan
    from lora_worker.deployment.rest import RunPodApi

T = TypeVar("T")

commands = command_group()
deploy = typer.Typer(
    help="Make an endpoint and its volumes at RunPod, as deploy.toml describes them, and keep them so.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
commands.add_typer(deploy, name="deploy")
deploy.command()(deploy_init.init)

File = Annotated[Path, typer.Option("--file", "-f", help="The deployment's file.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")]

DEFAULT_FILE = Path("deploy.toml")


@deploy.command()
def plan(
    file: File = DEFAULT_FILE,
    fail_on_changes: Annotated[
        bool, typer.Option("--fail-on-changes", help="Exit with 4 where something would change.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what `apply` would change, and what the GPUs cost. Nothing is changed."""
    from lora_worker.commands.deploy_views import plan_value, print_plan
    from lora_worker.deployment.planning import plan_deployment
    from lora_worker.deployment.survey import take_survey

    specification = specification_or_exit(file)

    async def look(api: RunPodApi) -> Plan:
        return plan_deployment(specification, await take_survey(api, specification))

    made = with_api(look)
    show(plan_value(made), as_json=as_json, text=lambda console: print_plan(made, console))
    if fail_on_changes and made.needed:
        raise typer.Exit(EXIT_CHANGES_NEEDED)


@deploy.command()
def apply(
    file: File = DEFAULT_FILE,
    yes: Yes = False,
    write_env: Annotated[
        bool, typer.Option("--write-env", help="Write the worker's variables into .env; its other lines stay.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make RunPod what the file says. Again without a change it calls nothing that writes."""
    from lora_worker.commands.deploy_views import applied_value, plan_value, print_applied, print_plan
    from lora_worker.deployment.applying import Applier
    from lora_worker.deployment.planning import plan_deployment
    from lora_worker.deployment.survey import take_survey
    from lora_worker.deployment.variables import worker_variables, write_variables
    from lora_worker.money.pricing import load_prices

    specification = specification_or_exit(file)

    async def carry_out(api: RunPodApi) -> tuple[Plan, dict[str, str], str]:
        survey = await take_survey(api, specification)
        made = plan_deployment(specification, survey)
        if not as_json:
            print_plan(made, make_console())
        endpoint = survey.endpoint(specification.name)
        if made.needed:
            confirm(yes, "Make these changes?", "apply")
            endpoint = await _hinted(Applier(api, specification, say).apply(made.actions, survey))
        assert endpoint is not None
        variables = worker_variables(specification, endpoint, survey, load_prices())
        return made, variables, str(endpoint.id)

    made, variables, endpoint_id = with_api(carry_out)
    written = _write(lambda: write_variables(variables)) if write_env else None
    _warn_of_variables(variables)
    value = applied_value(plan_value(made), endpoint_id, variables, written=written)
    show(value, as_json=as_json, text=lambda console: print_applied(value, console))


def _warn_of_variables(variables: Mapping[str, str]) -> None:
    from lora_worker.configuration.environment import variable_names
    from lora_worker.deployment.variables import GPU_TYPE

    for name, text in variables.items():
        if os.environ.get(name, text) != text:
            say(f"{name} is set to something else in the environment, which counts before .env: unset it there")
    if GPU_TYPE not in variables and GPU_TYPE in variable_names():
        say(
            f"{GPU_TYPE} is set, so each job is billed as that GPU, and the pools have several: take it out, or mean it"
        )


async def _hinted(work: Awaitable[T]) -> T:
    """Add to a failure half-way what to do next."""
    from lora_worker.errors import DeploymentError, ServiceError

    try:
        return await work
    except ServiceError as error:
        raise DeploymentError(f"{error}. What was done before stays: the same command goes on from there") from None


def _write(write: Callable[[], T]) -> T:
    from lora_worker.errors import SettingsError

    try:
        return write()
    except SettingsError as error:
        raise refuse(str(error)) from None


def confirm(yes: bool, question: str, command: str) -> None:
    """Ask whether to go on; exits with 1 on a no, and with 2 where nobody can be asked."""
    if yes:
        return
    refuse_unattended(f"nobody can be asked here: `lora-worker deploy {command} --yes` goes on without asking")
    confirm_or_exit(question)


@deploy.command()
def destroy(
    file: File = DEFAULT_FILE,
    yes: Yes = False,
    with_volumes: Annotated[
        bool, typer.Option("--with-volumes", help="Delete the network volumes, too, with all they hold.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete the endpoint, and with --with-volumes its volumes. Asks before, for each volume by itself."""
    from lora_worker.commands.deploy_views import plan_value, print_plan
    from lora_worker.deployment.applying import delete
    from lora_worker.deployment.planning import ENDPOINT, VOLUME, ActionKind
    from lora_worker.deployment.removal import plan_removal
    from lora_worker.deployment.survey import look_at_resources

    specification = specification_or_exit(file)

    async def take_away(api: RunPodApi) -> Plan:
        made = plan_removal(specification, await look_at_resources(api), with_volumes=with_volumes)
        if not as_json:
            print_plan(made, make_console())
        agreed = []
        for action in made.needed:
            question = f"Delete the {action.resource} {action.name}?"
            if action.resource == ENDPOINT and action.id:
                busy = await _busy(api, action.id)
                question = f"{busy}. {question}" if busy else question
            if action.resource == VOLUME:
                question = f"{question} The base models and checkpoints on it are lost"
            confirm(yes, question, "destroy")
            agreed.append(action)
        await _hinted(delete(api, tuple(agreed), say=say))
        return made

    made = with_api(take_away)
    kept = [action for action in made.actions if action.kind is ActionKind.KEEP]
    value = {**plan_value(made), "deleted": len(made.needed)}
    show(value, as_json=as_json, text=lambda console: _print_destroyed(len(made.needed), len(kept), console))


async def _busy(api: RunPodApi, endpoint_id: str) -> str:
    from lora_worker.deployment.removal import busy_note
    from lora_worker.errors import ServiceError

    try:
        return busy_note(await api.list_workers(endpoint_id))
    except ServiceError:
        # It is only told, and the deletion itself finds out what RunPod refuses.
        return ""


def _print_destroyed(deleted: int, kept: int, console: Console) -> None:
    if not deleted:
        console.print("nothing to delete")
    elif kept:
        console.print("done; what is kept is billed on")
    else:
        console.print("done: nothing of the deployment is left at RunPod")


deploy.command()(deploy_prefetch.prefetch)
deploy.command()(deploy_smoke.smoke)
