"""The command `setup`: from a Supabase project and a RunPod key to an endpoint that is ready for its first job.

It goes through the commands that can also be called one by one. Each of them may be repeated, so after a failure the
same command goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from lora_worker.commands import deploy, deploy_init, deploy_prefetch, setup
from lora_worker.commands.deploy_access import say, specification_or_exit
from lora_worker.commands.terminal import EXIT_USAGE, command_group, may_ask, refuse
from lora_worker.configuration.environment import DATABASE_VARIABLES

commands = command_group()


@dataclass(frozen=True, slots=True)
class Needed:
    """A variable that must be set before anything can be done. The first of `names` is the one that is written."""

    names: tuple[str, ...]
    where: str
    is_secret: bool = True


NEEDED = (
    Needed(("SUPABASE_URL",), "the project's URL, https://….supabase.co", is_secret=False),
    Needed(("SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SECRET_KEY"), "sb_secret_…, from the project's API keys"),
    Needed(("SUPABASE_PUBLISHABLE_KEY", "SUPABASE_ANON_KEY"), "sb_publishable_…, from the project's API keys"),
    Needed(DATABASE_VARIABLES, "postgresql://…, the session pooler of the project's page “Connect”"),
    Needed(("GPU_CLUSTER_API_KEY", "RUNPOD_API_KEY"), "rpa_…, from RunPod's settings, with all rights"),
)


@commands.command("setup")
def set_up(
    file: Annotated[Path, typer.Option("--file", "-f", help="The deployment's file; made if it is missing.")] = Path(
        "deploy.toml"
    ),
    image: Annotated[str | None, typer.Option(help="The trainer's image, if the file is missing.")] = None,
    data_center: Annotated[
        list[str] | None, typer.Option(help="Where the volume with base models is, if the file is missing.")
    ] = None,
    prefetch: Annotated[
        bool, typer.Option("--prefetch/--no-prefetch", help="Download the base models onto the volume now.")
    ] = True,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
) -> None:
    """Ask for the keys, migrate the database, make the endpoint, fetch the base models, and check everything.

    Goes through `migrate`, `deploy init`, `deploy apply`, `deploy prefetch` and `doctor`. After a failure the same
    command goes on where it stopped.
    """
    _step(1, "keys")
    _set_needed(ask=may_ask() and not yes)
    _step(2, "database")
    setup.migrate(database_url="", down=False, storage_policies=None, yes=yes, wait_seconds=600, as_json=False)
    _step(3, "endpoint")
    if not file.exists():
        _write_deployment(file, image, data_center)
    deploy.apply(file=file, yes=yes, write_env=True, as_json=False)
    _step(4, "base models")
    specification = specification_or_exit(file)
    if not prefetch or not specification.volumes or not specification.base_models:
        say("left out: each training downloads its base model" if not specification.volumes else "left out")
    else:
        deploy_prefetch.prefetch(models=None, file=file, as_json=False)
    _step(5, "checks")
    setup.doctor(as_json=False)
    say("Ready. `lora-worker deploy smoke` trains a tiny adapter through the whole chain; `lora-worker run` starts it.")


_STEPS = 5


def _step(number: int, name: str) -> None:
    say(f"── {number} of {_STEPS}: {name}")


def _write_deployment(file: Path, image: str | None, data_center: list[str] | None) -> None:
    deploy_init.init(
        file=file, image=image, name=None, pool=None, exclude_type=None, gpu_count=None, min_cuda=None, base_model=None,
        data_center=data_center, volume_gb=None, disk_gb=None, max_workers=None, idle_seconds=None,
        execution_seconds=None, registry=None, flashboot=None, force=False, as_json=False,
    )  # fmt: skip


def _set_needed(*, ask: bool) -> None:
    """Ask for each variable that is set neither in the environment nor in `.env`, and write the answers into `.env`."""
    from lora_worker.configuration.environment import first_value
    from lora_worker.deployment.variables import write_variables
    from lora_worker.errors import SettingsError

    try:
        missing = [needed for needed in NEEDED if not first_value(needed.names)]
        if missing and not ask:
            listed = "; ".join(f"{needed.names[0]} ({needed.where})" for needed in missing)
            raise refuse(f"set these in the environment or in .env first: {listed}", EXIT_USAGE)
        answers = {needed.names[0]: _ask_for(needed) for needed in missing}
        if answers:
            write_variables(answers)
            say(f"wrote {len(answers)} of them into .env, which only you may read")
        else:
            say("all set")
    except SettingsError as error:
        raise refuse(str(error), EXIT_USAGE) from None


def _ask_for(needed: Needed, prompt: Callable[..., str] = typer.prompt) -> str:
    question = f"{needed.names[0]} ({needed.where})"
    return str(prompt(question, hide_input=needed.is_secret, err=True)).strip()
