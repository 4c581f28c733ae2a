"""What the commands `deploy …` share: RunPod's key, its API, the deployment's file, and what is told meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from lora_worker.commands.terminal import EXIT_USAGE, make_console, refuse, run_or_exit

if TYPE_CHECKING:
    from lora_worker.deployment.rest import RunPodApi
    from lora_worker.deployment.specification import Specification
    from lora_worker.launchers.runpod.settings import RunPodAccount

T = TypeVar("T")

File = Annotated[Path, typer.Option("--file", "-f", help="The deployment's file.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")]
FailOnChanges = Annotated[bool, typer.Option("--fail-on-changes", help="Exit with 4 where something would change.")]

DEFAULT_FILE = Path("deploy.toml")


def account_or_exit() -> RunPodAccount:
    """Read RunPod's key and address. Exits with 2 and a sentence where one is missing or wrong."""
    from lora_worker.errors import SettingsError
    from lora_worker.launchers.registry import load_runpod_account

    try:
        return load_runpod_account()
    except SettingsError as error:
        raise refuse(str(error), EXIT_USAGE) from None


def with_api(work: Callable[[RunPodApi], Awaitable[T]]) -> T:
    """Open a client of RunPod's REST API, and run `work` with it; what it waits for is said on standard error."""
    account = account_or_exit()

    async def opened() -> T:
        import httpx

        from lora_worker.deployment.rest import RunPodApi

        async with httpx.AsyncClient(timeout=httpx.Timeout(60, connect=10)) as http:
            key = account.gpu_cluster_api_key.get_secret_value()
            return await work(RunPodApi(account.runpod_api_url, key, http=http, on_wait=say))

    return run_or_exit(opened())


def say(text: str) -> None:
    """Tell what goes on, on standard error: standard output holds the answer alone."""
    make_console(stderr=True).print(text, soft_wrap=True)


def specification_or_exit(path: Path) -> Specification:
    """Read a deployment's file. Exits with 2 and a sentence where it is missing or wrong."""
    from lora_worker.deployment.file import read_specification
    from lora_worker.errors import DeploymentFileError

    try:
        return read_specification(path)
    except DeploymentFileError as error:
        raise refuse(str(error), EXIT_USAGE) from None
