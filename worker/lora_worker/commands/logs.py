"""The command `lora-worker logs`: what the containers of a job's runs have printed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_worker.commands.jobs import JobArgument
from lora_worker.commands.terminal import EXIT_FAILED, AsJson, command_group, refuse, show, with_services

if TYPE_CHECKING:
    from rich.console import Console

    from lora_worker.commands.run_log import RunLog
    from lora_worker.database.job_reports import JobDetails, RunReport
    from lora_worker.services import Services

commands = command_group()


@commands.command()
def logs(
    job: JobArgument,
    run: Annotated[int | None, typer.Option("--run", min=1, help="The attempt; the latest one by default.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the log of a job's run: the kept one, or of a live run what its container has printed so far.

    Secrets and other programs' words, which may quote the dataset, are left out. With -f and --json each line is an
    object of its own.
    """
    if follow:
        with_services(lambda services: _follow(services, job, run, as_json=as_json))
        return
    details, chosen, found = with_services(lambda services: _read(services, job, run))
    show(_as_json(details, chosen, found), as_json=as_json, text=lambda console: _print(found, console))
    if found.source == "none":
        raise refuse(found.note or "", EXIT_FAILED) if not as_json else typer.Exit(EXIT_FAILED)


async def _read(services: Services, job: str, attempt: int | None) -> tuple[JobDetails, RunReport, RunLog]:
    from lora_worker.commands.references import job_details
    from lora_worker.commands.run_log import choose_run, read_log

    details = await job_details(services.queue, job)
    chosen = choose_run(details, attempt)
    return details, chosen, await read_log(services, details, chosen)


async def _follow(services: Services, job: str, attempt: int | None, *, as_json: bool) -> None:
    from lora_worker.commands.references import job_details
    from lora_worker.commands.run_log import choose_run, end_of, follow_log

    first = await job_details(services.queue, job)
    # A job that is retried meanwhile has a later run; the one that was asked for is followed to its end.
    attempt = choose_run(first, attempt)["attempt"]

    async def look() -> tuple[JobDetails, RunReport]:
        details = await job_details(services.queue, first["job"]["job_id"])
        return details, choose_run(details, attempt)

    def print_line(line: str) -> None:
        typer.echo(json.dumps({"line": line}) if as_json else line)

    ended = await follow_log(services, look, print_line)
    typer.echo(f"run {ended['attempt']} ended as {end_of(ended)}", err=True)


def _as_json(details: JobDetails, run: RunReport, found: RunLog) -> dict[str, Any]:
    return {
        "job_id": details["job"]["job_id"],
        "run_id": run["run_id"],
        "attempt": run["attempt"],
        "status": run["status"],
        "source": found.source,
        "note": found.note,
        "lines": found.lines,
    }


def _print(found: RunLog, console: Console) -> None:
    for line in found.lines:
        console.print(line, soft_wrap=True)
