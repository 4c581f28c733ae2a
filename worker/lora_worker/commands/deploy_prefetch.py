"""The command `deploy prefetch`: base models get onto the endpoint's volumes before the first training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_worker.commands.deploy_access import say, specification_or_exit, with_api
from lora_worker.commands.terminal import EXIT_JOB_FAILED, EXIT_USAGE, AsJson, printable, refuse, show

if TYPE_CHECKING:
    from rich.console import Console

    from lora_contract.errands import ErrandResult
    from lora_worker.deployment.prefetching import Sight
    from lora_worker.deployment.rest import RunPodApi
    from lora_worker.deployment.specification import Specification

_SAY_SECONDS = 30.0
"""How often a wait without news is told."""
_SAY_BYTES = 0.05
"""Which part of a download is news."""

_WORDS = {
    "present": "was on the volume already: nothing to do",
    "cached": "is in the machine's own cache or in the image: a training downloads nothing, and needs no prefetch",
    "downloaded": "is on the volume now",
}


def prefetch(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Base models, as organisation/model[@revision]; none: those of the file."),
    ] = None,
    file: Annotated[Path, typer.Option("--file", "-f", help="The deployment's file.")] = Path("deploy.toml"),
    as_json: AsJson = False,
) -> None:
    """Download base models onto the endpoint's volume, by a job on the endpoint itself.

    Checks the free space first; what is there is not downloaded again. Ctrl-C ends the job: the same command goes on.
    """
    specification = specification_or_exit(file)
    wanted = _checked(models or list(specification.wanted_models))
    if not specification.volumes:
        raise refuse(
            f"{file} names no volume, so that what is downloaded would be gone with the worker: add [[volumes]] and "
            "apply it, or let each training download its base",
            EXIT_USAGE,
        )
    if len(specification.volumes) > 1:
        say("the endpoint has several volumes: a prefetch fills the one of the data centre in which its worker starts")
    started = time.monotonic()
    result = with_api(lambda api: _run(api, specification, wanted))
    seconds = round(time.monotonic() - started, 1)
    value = {**result.model_dump(mode="json", include={"models", "error"}), "seconds": seconds}
    show(value, as_json=as_json, text=lambda console: _print(value, console))
    if result.error is not None:
        raise refuse(printable(result.error.sentence()), EXIT_JOB_FAILED)


def _checked(models: list[str]) -> list[str]:
    from lora_contract.errands import MAX_MODELS, split_model

    if not models:
        raise refuse("name a base model, or write base_models into the file", EXIT_USAGE)
    if len(models) > MAX_MODELS:
        raise refuse(f"a prefetch takes {MAX_MODELS} base models at most", EXIT_USAGE)
    for model in models:
        try:
            split_model(model)
        except ValueError as error:
            raise refuse(str(error), EXIT_USAGE) from None
    return models


async def _run(api: RunPodApi, specification: Specification, models: list[str]) -> ErrandResult:
    from lora_worker.deployment.applying import look_for_endpoint
    from lora_worker.deployment.prefetching import prefetch as carry_out
    from lora_worker.deployment.variables import job_url
    from lora_worker.launchers.runpod.launcher import RunPodLauncher

    endpoint = await look_for_endpoint(api, specification.name)
    launcher = RunPodLauncher(job_url(endpoint), api.key, http=api.http)
    say(f"prefetch of {', '.join(models)} at the endpoint {specification.name}; Ctrl-C ends it")
    return await carry_out(
        launcher, models, execution_seconds=specification.workers.execution_seconds, seen=Teller().tell
    )


class Teller:
    """Tells what is new about a prefetch, on standard error: one line for each step of the download or of the wait."""

    def __init__(self) -> None:
        self._last: tuple[Any, ...] | None = None
        self._told_at = 0.0

    def tell(self, sight: Sight) -> None:
        """Tell a sight if it is news."""
        progress = sight.progress
        part = progress.done_bytes / progress.total_bytes if progress and progress.total_bytes else 0.0
        news = (sight.state, progress.model if progress else None, int(part / _SAY_BYTES), sight.problem)
        if news == self._last and sight.seconds - self._told_at < _SAY_SECONDS:
            return
        self._last, self._told_at = news, sight.seconds
        say(f"{sight.seconds:6.0f} s  {_sentence(sight, part)}")


def _sentence(sight: Sight, part: float) -> str:
    progress = sight.progress
    if progress is not None:
        size = f" of {progress.total_bytes / 1e9:.1f} GB ({part:.0%})" if progress.total_bytes else ""
        return f"{printable(progress.model)}: {progress.done_bytes / 1e9:.1f}{size or ' GB'}"
    if sight.problem:
        return printable(sight.problem)
    return {"queued": "waits for a worker", "running": "runs"}.get(sight.state, "its status can't be read now")


def _print(value: dict[str, Any], console: Console) -> None:
    for model in value["models"]:
        size = f"{model['bytes'] / 1e9:.1f} GB"
        took = f", {model['seconds']:.0f} s" if model["status"] == "downloaded" and model["seconds"] else ""
        console.print(f"{printable(model['model'])} ({size}{took}) {_WORDS[model['status']]}", soft_wrap=True)
