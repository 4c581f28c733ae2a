"""Commands about single jobs: `jobs`, `show`, `watch`, `cancel`, `retry`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lora_worker.commands.terminal import EXIT_FAILED, AsJson, command_group, print_lines, show, with_services
from lora_worker.database.job_states import JobStatus

if TYPE_CHECKING:
    from uuid import UUID

    from rich.console import Console

    from lora_contract.evaluation import Sample
    from lora_worker.database.job_reports import JobDetails, JobFilter, JobPage, RetryAnswer
    from lora_worker.services import Services

commands = command_group()

_LOG_LINES = 15

JobArgument = Annotated[str, typer.Argument(help="A job's id, or a beginning of it that no other has.")]


@commands.command()
def jobs(
    status: Annotated[list[JobStatus] | None, typer.Option(help="Only jobs that stand so; may be repeated.")] = None,
    user: Annotated[str, typer.Option(help="Only jobs of the user with this id or mail address.")] = "",
    model: Annotated[str, typer.Option(help="Only jobs on this base model.")] = "",
    error: Annotated[str, typer.Option(help="Only jobs whose latest run ended with this error code.")] = "",
    since: Annotated[str, typer.Option(help="Only jobs queued since: 24h, 7d, or a date (UTC).")] = "",
    until: Annotated[str, typer.Option(help="Only jobs queued until then.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many a page has.")] = 50,
    cursor: Annotated[str, typer.Option(help="Goes on where a page ended, which says its cursor.")] = "",
    as_json: AsJson = False,
) -> None:
    """List jobs of both queues, newest first: where they stand, what they cost, why they wait or failed."""
    from lora_worker.commands.job_views import print_jobs

    async def work(services: Services) -> JobPage:
        from lora_worker.commands.references import find_user, moment, page_cursor

        now = services.now()
        wanted: JobFilter = {
            "statuses": [str(one) for one in status] if status else None,
            "user_id": str(await find_user(services.queue, user)) if user else None,
            "base_model": model or None,
            "error_code": error or None,
            "since": moment(since, now).isoformat() if since else None,
            "until": moment(until, now).isoformat() if until else None,
            "limit": limit,
            "cursor": page_cursor(cursor) if cursor else None,
        }
        return await services.queue.list_training_jobs(wanted)

    page = with_services(work)
    show(page, as_json=as_json, text=lambda console: print_jobs(page, console))


@commands.command(name="show")
def show_job(
    job: JobArgument,
    samples: Annotated[
        bool, typer.Option("--samples", help="Also what base and adapter answered to the same prompts.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show everything about a job: its runs, its curve, its cost, what got better, its errors, the end of its log."""
    from lora_worker.commands.job_views import print_job
    from lora_worker.commands.sample_views import print_samples
    from lora_worker.database.measured import measured_of

    async def work(services: Services) -> tuple[JobDetails, list[str], list[Sample] | None]:
        details, log = await _details_and_log(services, job)
        return details, log, await _samples(services, details) if samples else None

    details, log, found = with_services(work)

    def print_all(console: Console) -> None:
        print_job(details, console, log)
        print_samples(found or [], console)

    value = {
        **details,
        "measured": measured_of(details).model_dump(mode="json"),
        "log": log,
        "samples": None if found is None else [sample.model_dump(mode="json") for sample in found],
    }
    show(value, as_json=as_json, text=print_all)


async def _samples(services: Services, details: JobDetails) -> list[Sample]:
    """The answers side by side of the job's finished run.

    Raises:
        ArgumentError: there are none.
        ArtifactError: they can't be read.
        ServiceError: the storage did not answer.
    """
    from uuid import UUID

    from lora_worker.database.job_reports import finished_run
    from lora_worker.errors import ArgumentError

    run, user_id = finished_run(details), details["job"]["user_id"]
    if run is None or user_id is None:
        raise ArgumentError(f"job {details['job']['job_id']} has not completed, so it has no samples")
    found = await services.evaluations.samples(UUID(user_id), UUID(run["run_id"]))
    if not found:
        raise ArgumentError(f"the adapter of job {details['job']['job_id']} has no samples: its trainer compared none")
    return found


async def _details_and_log(services: Services, job: str) -> tuple[JobDetails, list[str]]:
    """Everything about a job, and the last lines of its latest run's log, as far as they can be read."""
    from lora_worker.commands.references import job_details
    from lora_worker.commands.run_log import last_lines
    from lora_worker.errors import ServiceError

    details = await job_details(services.queue, job)
    if not details["runs"]:
        return details, []
    try:
        return details, await last_lines(services, details, details["runs"][-1], most=_LOG_LINES)
    except ServiceError as error:
        # The log is the least of what is shown.
        return details, [f"it can't be read: {error}"]


async def _find_all(services: Services, named: list[str]) -> list[UUID]:
    """All jobs that are named, before anything happens to the first of them."""
    from lora_worker.commands.references import find_job

    return list(dict.fromkeys([await find_job(services.queue, one) for one in named]))


@commands.command()
def cancel(
    job: Annotated[list[str], typer.Argument(help="Jobs' ids, or beginnings of them.")], as_json: AsJson = False
) -> None:
    """Cancel jobs. A worker stops their GPUs in its next cycle; what they have cost is billed."""

    async def work(services: Services) -> list[dict[str, object]]:
        found = await _find_all(services, job)
        return [{"job_id": str(one), "cancelled": await services.queue.cancel_training_job(one)} for one in found]

    done = with_services(work)
    lines = [
        f"{one['job_id']} is cancelled" if one["cancelled"] else f"{one['job_id']} has ended before, or does not exist"
        for one in done
    ]
    show(done, as_json=as_json, text=lambda console: print_lines(console, lines))
    if not all(one["cancelled"] for one in done):
        raise typer.Exit(EXIT_FAILED)


@commands.command()
def retry(
    job: Annotated[list[str], typer.Argument(help="Jobs' ids, or beginnings of them.")], as_json: AsJson = False
) -> None:
    """Start jobs again that failed or were cancelled. Each goes on from its last checkpoint, where there is one."""

    async def work(services: Services) -> list[tuple[UUID, RetryAnswer]]:
        found = await _find_all(services, job)
        return [(one, await services.queue.retry_training_job(one)) for one in found]

    answers = with_services(work)
    lines = [
        f"{one} is queued again" if answer["retried"] else f"{one} is not started again: {answer['reason']}"
        for one, answer in answers
    ]
    value = [{"job_id": str(one), **answer} for one, answer in answers]
    show(value, as_json=as_json, text=lambda console: print_lines(console, lines))
    if not all(answer["retried"] for _, answer in answers):
        raise typer.Exit(EXIT_FAILED)


@commands.command()
def watch(
    job: Annotated[str, typer.Argument(help="A job's id, or a beginning of it; empty: the whole queue.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show a job live until it has ended, or the queue until Ctrl-C. In a pipe a line tells each change.

    With --json each line is an object. Exits with 3 if the job failed or was cancelled.
    """
    from lora_worker.commands.watching import watch_job, watch_queue

    if not job:
        with_services(lambda services: watch_queue(services, as_json=as_json))
        return
    code = with_services(lambda services: watch_job(services, job, as_json=as_json))
    raise typer.Exit(code)
