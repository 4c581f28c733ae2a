"""The command `deploy smoke`: a tiny job through the whole chain, and nothing of it left afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_worker.commands.deploy_access import say
from lora_worker.commands.terminal import (
    EXIT_FAILED,
    EXIT_JOB_FAILED,
    AsJson,
    printable,
    refuse,
    settings_or_exit,
    show,
    with_services,
)

if TYPE_CHECKING:
    from rich.console import Console

    from lora_worker.commands.trial import Trial
    from lora_worker.database.job_reports import JobDetails
    from lora_worker.services import Services


def smoke(
    base: Annotated[str, typer.Option(help="Base model; empty: the smallest of LORA_WORKER_BASE_MODELS.")] = "",
    gpu: Annotated[str, typer.Option(help="A GPU of the price table; empty: the endpoint's.")] = "",
    minutes: Annotated[
        float, typer.Option(min=0.1, max=1440, help="How long it may take, the pull of the image included.")
    ] = 60,
    as_json: AsJson = False,
) -> None:
    """Train a tiny job through the whole chain, verify its adapter, say what took how long, and remove all of it.

    Works with a running worker, and without one: then this command works on the queue itself. Exits with 3 where the
    job failed. Ctrl-C ends the job and removes it, too.
    """
    from lora_worker.observability.telemetry import configure_logging

    settings = settings_or_exit()
    # What is told here says enough of a worker in this process.
    configure_logging(settings.model_copy(update={"log_level": "warning"}))

    async def conduct(services: Services) -> Trial:
        from lora_worker.commands.trial import Conduct
        from lora_worker.submission.trials import smallest_base

        chosen = base or smallest_base(settings.base_models)
        conducted = Conduct(services, say, Teller().tell, timeout_seconds=minutes * 60)
        return await conducted.run(chosen, gpu or None)

    trial = with_services(conduct, settings)
    value = _value(trial)
    show(value, as_json=as_json, text=lambda console: _print(value, console))
    if trial.left:
        raise refuse(f"not all of the trial could be removed: {printable(trial.left)}; the next one tries again")
    if trial.failure:
        failed = bool(trial.job) and trial.job["status"] != "completed"
        raise refuse(printable(trial.failure), EXIT_JOB_FAILED if failed else EXIT_FAILED)


class Teller:
    """Tells what is new about the trial, on standard error: each stage, and what it waits for."""

    def __init__(self) -> None:
        self._last: tuple[Any, ...] | None = None

    def tell(self, details: JobDetails) -> None:
        """Tell a look at the job if it is news."""
        job = details["job"]
        problem = next((run["problem"] for run in details["runs"] if run["problem"]), None)
        news = (job["status"], job["stage"], job["current_step"], job["waits_for"], problem)
        if news == self._last:
            return
        self._last = news
        words = [job["stage"] or job["status"]]
        if job["current_step"] and job["total_steps"]:
            words.append(f"step {job['current_step']} of {job['total_steps']}")
        if job["waits_for"]:
            words.append(f"waits for {job['waits_for']}")
        if problem:
            words.append(problem)
        say(f"  {printable(' · '.join(words))}")


def _value(trial: Trial) -> dict[str, Any]:
    job = trial.job
    return {
        "base_model": trial.base_model,
        "status": job.get("status"),
        "problem": trial.failure,
        "stages": [{"stage": stage["stage"], "seconds": stage["seconds"]} for stage in trial.stages],
        "usd": job.get("final_cost"),
        "files": trial.files,
        "bytes": trial.bytes,
        "removed": trial.left is None,
    }


def _print(value: dict[str, Any], console: Console) -> None:
    from rich.table import Table

    from lora_worker.words import money

    if value["stages"]:
        table = Table("stage", "seconds", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for stage in value["stages"]:
            table.add_row(printable(stage["stage"]), f"{stage['seconds']:.1f}")
        table.add_row("together", f"{sum(stage['seconds'] for stage in value['stages']):.1f}")
        console.print(table)
    if value["usd"] is not None:
        console.print(f"cost: {money(value['usd'])}")
    if value["files"]:
        console.print(f"the adapter is what its manifest says: {value['files']} files, {value['bytes']:,} bytes")
    if value["removed"]:
        console.print("its job, dataset and files are removed")
