"""Planning, applying and destroying an endpoint, for the trainer's and for the one that answers."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from lora_worker.commands.deploy_access import say, with_api
from lora_worker.commands.terminal import (
    EXIT_CHANGES_NEEDED,
    confirm_or_exit,
    make_console,
    refuse,
    refuse_unattended,
    show,
)

if TYPE_CHECKING:
    from rich.console import Console

    from lora_worker.deployment.planning import Plan
    from lora_worker.deployment.resources import Endpoint
    from lora_worker.deployment.rest import RunPodApi
    from lora_worker.deployment.survey import Survey
    from lora_worker.deployment.tables import EndpointTable

T = TypeVar("T")


@dataclass(frozen=True)
class Planned:
    """An endpoint as it shall be, what there is at RunPod, and the plan between the two.

    `told` are further keys of the command's answer, and `print_told` prints them.
    """

    endpoint: EndpointTable
    survey: Survey
    plan: Plan
    told: Mapping[str, Any] = field(default_factory=dict)
    print_told: Callable[[Console], None] = lambda _: None


Look = Callable[["RunPodApi"], Awaitable[Planned]]
Variables = Callable[["Planned", "Endpoint"], dict[str, str]]


def plan_endpoint(look: Look, *, fail_on_changes: bool, as_json: bool) -> None:
    """Show a plan. Exits with 4 where something would change, if that is asked for."""
    from lora_worker.commands.deploy_views import plan_value

    planned = with_api(look)
    value = {**plan_value(planned.plan), **planned.told}
    show(value, as_json=as_json, text=lambda console: _print_planned(planned, console))
    if fail_on_changes and planned.plan.needed:
        raise typer.Exit(EXIT_CHANGES_NEEDED)


def apply_endpoint(
    look: Look, variables_of: Variables, *, command: str, yes: bool, write_env: bool, as_json: bool
) -> None:
    """Make RunPod what a plan says, and tell the variables that the worker needs, or write them into `.env`."""
    from lora_worker.commands.deploy_views import applied_value, plan_value, print_applied
    from lora_worker.deployment.applying import Applier
    from lora_worker.deployment.variables import write_variables

    async def carry_out(api: RunPodApi) -> tuple[Planned, dict[str, str], str]:
        planned = await look(api)
        if not as_json:
            _print_planned(planned, make_console())
        endpoint = planned.survey.endpoint(planned.endpoint.name)
        if planned.plan.needed:
            confirm(yes, "Make these changes?", command)
            endpoint = await _hinted(Applier(api, planned.endpoint, say).apply(planned.plan.actions, planned.survey))
        assert endpoint is not None
        return planned, variables_of(planned, endpoint), str(endpoint.id)

    planned, variables, endpoint_id = with_api(carry_out)
    written = _write(lambda: write_variables(variables)) if write_env else None
    _warn_of_variables(variables)
    value = applied_value({**plan_value(planned.plan), **planned.told}, endpoint_id, variables, written=written)
    show(value, as_json=as_json, text=lambda console: print_applied(value, console))


def destroy_endpoint(
    endpoint: EndpointTable, *, command: str, gone: str, yes: bool, with_volumes: bool, as_json: bool
) -> None:
    """Delete an endpoint, and its volumes where that is asked for. Asks before each.

    `gone` is what is told where nothing of it is kept.
    """
    from lora_worker.commands.deploy_views import plan_value, print_plan
    from lora_worker.deployment.applying import delete
    from lora_worker.deployment.planning import ENDPOINT, VOLUME, ActionKind
    from lora_worker.deployment.removal import plan_removal
    from lora_worker.deployment.survey import look_at_resources

    async def take_away(api: RunPodApi) -> Plan:
        made = plan_removal(endpoint, await look_at_resources(api), with_volumes=with_volumes)
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
            confirm(yes, question, command)
            agreed.append(action)
        await _hinted(delete(api, tuple(agreed), say=say))
        return made

    made = with_api(take_away)
    kept = [action for action in made.actions if action.kind is ActionKind.KEEP]
    value = {**plan_value(made), "deleted": len(made.needed)}
    show(value, as_json=as_json, text=lambda console: _print_destroyed(len(made.needed), len(kept), gone, console))


def confirm(yes: bool, question: str, command: str) -> None:
    """Ask whether to go on; exits with 1 on a no, and with 2 where nobody can be asked."""
    if yes:
        return
    refuse_unattended(f"nobody can be asked here: `lora-worker deploy {command} --yes` goes on without asking")
    confirm_or_exit(question)


def _print_planned(planned: Planned, console: Console) -> None:
    from lora_worker.commands.deploy_views import print_plan

    print_plan(planned.plan, console)
    planned.print_told(console)


def _warn_of_variables(variables: Mapping[str, str]) -> None:
    for name, text in variables.items():
        if os.environ.get(name, text) != text:
            say(f"{name} is set to something else in the environment, which counts before .env: unset it there")


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


async def _busy(api: RunPodApi, endpoint_id: str) -> str:
    from lora_worker.deployment.removal import busy_note
    from lora_worker.errors import ServiceError

    try:
        return busy_note(await api.list_workers(endpoint_id))
    except ServiceError:
        # It is only told, and the deletion itself finds out what RunPod refuses.
        return ""


def _print_destroyed(deleted: int, kept: int, gone: str, console: Console) -> None:
    if not deleted:
        console.print("nothing to delete")
    elif kept:
        console.print("done; what is kept is billed on")
    else:
        console.print(f"done: {gone}")
