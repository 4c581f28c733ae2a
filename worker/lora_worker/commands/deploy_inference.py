"""The commands `deploy inference …`: an endpoint of worker-vllm that answers with a base model and its adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_worker.commands.deploy_access import (
    DEFAULT_FILE,
    FailOnChanges,
    File,
    Yes,
    say,
    specification_or_exit,
    with_api,
)
from lora_worker.commands.deploy_steps import Planned, apply_endpoint, confirm, destroy_endpoint, plan_endpoint
from lora_worker.commands.terminal import EXIT_USAGE, AsJson, printable, refuse, show

if TYPE_CHECKING:
    from rich.console import Console

    from lora_worker.commands.deploy_steps import Look
    from lora_worker.deployment.fleet import Fleet
    from lora_worker.deployment.resources import Endpoint
    from lora_worker.deployment.rest import RunPodApi
    from lora_worker.deployment.serving_plan import Adapters
    from lora_worker.deployment.specification import Specification

ENDPOINT_ID = "LORA_WORKER_RUNPOD_INFERENCE_ENDPOINT_ID"

inference = typer.Typer(
    help="Make an endpoint that answers with finished adapters, as the table [inference] of deploy.toml describes it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@inference.command()
def plan(
    file: File = DEFAULT_FILE,
    fail_on_changes: FailOnChanges = False,
    as_json: AsJson = False,
) -> None:
    """Show what `apply` would change, what it costs, and how many adapters fit into the GPU's memory."""
    plan_endpoint(_look(file), fail_on_changes=fail_on_changes, as_json=as_json)


@inference.command()
def apply(
    file: File = DEFAULT_FILE,
    yes: Yes = False,
    write_env: Annotated[
        bool, typer.Option("--write-env", help="Write the endpoint's id into .env; its other lines stay.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the endpoint what the file says. Ranks and number of adapters come from the finished jobs."""
    apply_endpoint(_look(file), _variables, command="inference apply", yes=yes, write_env=write_env, as_json=as_json)


@inference.command()
def destroy(
    file: File = DEFAULT_FILE,
    yes: Yes = False,
    with_volumes: Annotated[
        bool, typer.Option("--with-volumes", help="Delete the volume, too, unless the trainer's endpoint uses it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete the endpoint that answers. The trainer's endpoint and the volume stay."""
    endpoint = _specification(file).inference_endpoint
    destroy_endpoint(
        endpoint,
        command="inference destroy",
        gone="nothing of the endpoint that answers is left at RunPod; the trainer's endpoint was not touched",
        yes=yes,
        with_volumes=with_volumes,
        as_json=as_json,
    )


@inference.command()
def modules(
    add: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH of an adapter; PATH is a repository of the hub or a folder. May be repeated."),
    ] = None,
    remove: Annotated[list[str] | None, typer.Option(help="NAME of an adapter. May be repeated.")] = None,
    file: File = DEFAULT_FILE,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """List or change the adapters of an endpoint without a volume. A change replaces its workers one by one.

    With a volume that the trainer shares none of this is needed: adapters are found there by their names.
    """
    from lora_worker.deployment.modules import parse_module
    from lora_worker.errors import ArgumentError

    specification = _specification(file)
    if specification.inference_endpoint.volumes:
        raise refuse(
            "the endpoint shares a volume with the trainer, where adapters are found by name: none has to be listed",
            EXIT_USAGE,
        )
    if specification.inference and specification.inference.merged_model:
        raise refuse("the endpoint answers with a merged export, and so with no adapters", EXIT_USAGE)
    try:
        added = dict(map(parse_module, add or ()))
    except ArgumentError as error:
        raise refuse(str(error), EXIT_USAGE) from None
    removed = frozenset(remove or ())
    if added or removed:
        confirm(yes, "Change the adapters? Its workers are replaced, and load all of them", "inference modules")
    found = with_api(lambda api: _change_modules(api, specification.inference_name, added, removed))
    value = {"modules": [{"name": name, "path": path} for name, path in found.items()]}
    show(value, as_json=as_json, text=lambda console: _print_modules(found, console))


async def _change_modules(api: RunPodApi, name: str, added: dict[str, str], removed: frozenset[str]) -> dict[str, str]:
    from lora_worker.deployment.applying import look_for_endpoint
    from lora_worker.deployment.modules import changed_modules, read_modules, with_modules
    from lora_worker.deployment.releasing import change_variables

    endpoint = await look_for_endpoint(api, name, made_by="deploy inference apply")
    if added or removed:
        endpoint = await change_variables(
            api,
            str(endpoint.id),
            lambda variables: with_modules(variables, changed_modules(read_modules(variables), added, removed)),
        )
    return read_modules(endpoint.env or {})


def _print_modules(found: dict[str, str], console: Console) -> None:
    for name, path in found.items():
        console.print(f"{printable(name)}: {printable(path)}", soft_wrap=True)
    if not found:
        console.print("no adapters: the endpoint answers with its base model alone")


def _specification(file: Path) -> Specification:
    specification = specification_or_exit(file)
    if specification.inference is None:
        raise refuse(
            f"{file} has no table [inference], which describes the endpoint that answers: an empty one is enough, and "
            "docs/deploying.md lists its keys",
            EXIT_USAGE,
        )
    return specification


def _look(file: Path) -> Look:
    specification = _specification(file)

    async def look(api: RunPodApi) -> Planned:
        from dataclasses import replace

        from lora_worker.deployment.planning import plan_deployment
        from lora_worker.deployment.serving_plan import FOLDER_NOTE, answering_endpoint, dropped_note, plan_adapters
        from lora_worker.deployment.survey import take_survey

        survey = await take_survey(api, specification.inference_endpoint)
        found = survey.endpoint(specification.inference_name)
        adapters = plan_adapters(specification, await _fleet(specification, is_new=found is None), survey)
        endpoint = answering_endpoint(specification, adapters)
        plan = plan_deployment(endpoint, survey)
        notes = list(adapters.notes) if adapters else []
        if adapters and endpoint.volumes and found is None:
            notes.append(FOLDER_NOTE)
        if found and (dropped := dropped_note(endpoint, found.env or {})):
            notes.append(dropped)
        plan = replace(plan, notes=(*plan.notes, *notes))
        return Planned(
            endpoint, survey, plan, {"adapters": _value(adapters)}, lambda console: _print_adapters(adapters, console)
        )

    return look


def _variables(_: Planned, endpoint: Endpoint) -> dict[str, str]:
    return {ENDPOINT_ID: str(endpoint.id)}


async def _fleet(specification: Specification, *, is_new: bool) -> Fleet | None:
    """Return the finished adapters; None where they are not asked for, or no database tells them.

    A new endpoint is made without a database, too: there are no ranks yet that could be lowered.

    Raises:
        DeploymentError: no database tells them, and the file does not say what it would tell.
    """
    from lora_worker.errors import DeploymentError, ServiceError, SettingsError
    from lora_worker.launchers.registry import load_settings
    from lora_worker.services import open_services

    table = specification.inference
    assert table is not None
    if table.merged_model is not None:
        return None
    try:
        async with open_services(load_settings()) as services:
            return await services.queue.finished_adapters()
    except (ServiceError, SettingsError) as error:
        told = table.max_lora_rank is not None and table.max_loras is not None
        if isinstance(error, SettingsError) and (told or is_new):
            return None
        if told:
            say(f"{error}; the file's figures count")
            return None
        # Without them the endpoint would be set to lower ranks than there are, and answers would fail.
        raise DeploymentError(
            f"{str(error).rstrip('.')}: which adapters there are is not known. Write max_lora_rank and max_loras into "
            "the table inference to do without"
        ) from None


def _value(adapters: Adapters | None) -> dict[str, Any] | None:
    if adapters is None:
        return None
    room = adapters.room
    return {
        "base_model": adapters.base_model,
        "finished": adapters.finished,
        "max_lora_rank": adapters.max_lora_rank,
        "max_loras": adapters.max_loras,
        "max_cpu_loras": adapters.max_cpu_loras,
        "fit": room.fit if room else None,
        "memory_bytes": room.memory_bytes if room else None,
        "weights_bytes": room.weights_bytes if room else None,
        "tokens_bytes": room.tokens_bytes if room else None,
        "slot_bytes": room.slot_bytes if room else None,
        "full_requests": room.full_requests if room else None,
    }


def _print_adapters(adapters: Adapters | None, console: Console) -> None:
    from lora_contract.words import counted

    if adapters is None:
        console.print("answers with a merged export: no adapter is loaded")
        return
    room = adapters.room
    console.print(
        f"{counted(adapters.finished, 'finished adapter')} of {printable(adapters.base_model)}; ranks up to "
        f"{adapters.max_lora_rank}, {adapters.max_loras} in a batch, {adapters.max_cpu_loras} in the machine's memory",
        soft_wrap=True,
    )
    if room:
        console.print(
            f"{counted(room.fit, 'adapter')} of {room.slot_bytes / 1e6:,.0f} MB fit into a GPU's "
            f"{room.memory_bytes / 1e9:.0f} GB, beside {room.weights_bytes / 1e9:.1f} GB of weights over all GPUs and "
            f"{room.tokens_bytes / 1e9:.1f} GB for the tokens of {counted(room.full_requests, 'full request')}",
            soft_wrap=True,
        )
