"""The commands `deploy …`: an endpoint and its volumes at RunPod, as a file describes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_worker.commands import deploy_inference, deploy_init, deploy_prefetch, deploy_smoke
from lora_worker.commands.deploy_access import DEFAULT_FILE, FailOnChanges, File, Yes, say, specification_or_exit
from lora_worker.commands.deploy_steps import Planned, apply_endpoint, destroy_endpoint, plan_endpoint
from lora_worker.commands.terminal import AsJson, command_group

if TYPE_CHECKING:
    from lora_worker.commands.deploy_steps import Look
    from lora_worker.deployment.resources import Endpoint
    from lora_worker.deployment.rest import RunPodApi

commands = command_group()
deploy = typer.Typer(
    help="Make an endpoint and its volumes at RunPod, as deploy.toml describes them, and keep them so.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
commands.add_typer(deploy, name="deploy")
deploy.command()(deploy_init.init)


def _look(file: Path) -> Look:
    specification = specification_or_exit(file)

    async def look(api: RunPodApi) -> Planned:
        from lora_worker.deployment.planning import plan_deployment
        from lora_worker.deployment.survey import take_survey

        survey = await take_survey(api, specification)
        return Planned(specification, survey, plan_deployment(specification, survey))

    return look


@deploy.command()
def plan(
    file: File = DEFAULT_FILE,
    fail_on_changes: FailOnChanges = False,
    as_json: AsJson = False,
) -> None:
    """Show what `apply` would change, and what the GPUs cost. Nothing is changed."""
    plan_endpoint(_look(file), fail_on_changes=fail_on_changes, as_json=as_json)


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
    apply_endpoint(_look(file), _variables, command="apply", yes=yes, write_env=write_env, as_json=as_json)


def _variables(planned: Planned, endpoint: Endpoint) -> dict[str, str]:
    from lora_worker.configuration.environment import variable_names
    from lora_worker.deployment.variables import GPU_TYPE, worker_variables
    from lora_worker.money.pricing import load_prices

    variables = worker_variables(planned.endpoint, endpoint, planned.survey, load_prices())
    if GPU_TYPE not in variables and GPU_TYPE in variable_names():
        say(
            f"{GPU_TYPE} is set, so each job is billed as that GPU, and the pools have several: take it out, or mean it"
        )
    return variables


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
    specification = specification_or_exit(file)
    gone = "nothing of the deployment is left at RunPod"
    destroy_endpoint(specification, command="destroy", gone=gone, yes=yes, with_volumes=with_volumes, as_json=as_json)


deploy.command()(deploy_prefetch.prefetch)
deploy.command()(deploy_smoke.smoke)
deploy.add_typer(deploy_inference.inference, name="inference")
