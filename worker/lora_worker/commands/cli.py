"""The command line, `lora-worker …`. Imports what a command needs inside it, so that --help is instant."""

from __future__ import annotations

import json
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lora_worker.configuration.settings import Settings

app = typer.Typer(
    help="Claims LoRA training jobs from Supabase, trains them on RunPod Serverless, writes the results back.",
    no_args_is_help=True,
    add_completion=False,
    # rich would double the time that --help takes
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


def _fail(text: str, code: int) -> typer.Exit:
    typer.echo(f"lora-worker: {text}", err=True)
    return typer.Exit(code)


def _settings() -> Settings:
    from lora_worker.configuration.settings import load_settings
    from lora_worker.errors import SettingsError
    from lora_worker.money.pricing import check_prices, load_prices
    from lora_worker.observability.telemetry import configure_logging

    try:
        settings = load_settings()
        check_prices(settings, load_prices(settings.price_table))
    except SettingsError as error:
        raise _fail(str(error), 2) from None
    configure_logging(settings)
    return settings


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    import asyncio

    from lora_worker.errors import WorkerError

    try:
        return asyncio.run(work)
    except WorkerError as error:
        raise _fail(str(error), 1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def run(
    once: Annotated[bool, typer.Option("--once", help="One full pass, then exit (for cron).")] = False,
) -> None:
    """Claim, launch, poll and settle until SIGTERM; or one full pass with --once."""
    settings = _settings()
    _run(_work(settings, once=once))


async def _work(settings: Settings, *, once: bool) -> None:
    import asyncio
    import signal

    from lora_worker.duties.daemon import Daemon
    from lora_worker.observability.health import serving_health
    from lora_worker.services import open_services

    async with open_services(settings) as services:
        daemon = Daemon(services)
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, daemon.stop)
        if once:
            await daemon.run_once()
            return
        async with serving_health(settings, lambda: daemon.problem):
            await daemon.run()


@app.command()
def status(as_json: AsJson = False) -> None:
    """The queue and the live runs."""
    settings = _settings()
    health: dict[str, Any] = _run(_with_services(settings, lambda services: services.queue.health()))
    if as_json:
        typer.echo(json.dumps(health, indent=2))
        return
    _print_status(health)


async def _with_services(settings: Settings, work: Any) -> Any:
    from lora_worker.services import open_services

    async with open_services(settings) as services:
        return await work(services)


def _print_status(health: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from lora_worker.commands.status import status_lines

    console = Console()
    oldest = health["oldest_wait_seconds"]
    console.print(
        f"{health['queued']} queued (oldest {oldest:.0f} s)" if oldest else f"{health['queued']} queued",
        f"· {health['live_runs']} live · {health['expired_leases']} without a worker"
        f" · {health['stray_launches']} stray launches",
    )
    runs = Table("run", "attempt", "status", "stage", "progress", "step", "cost", "worker", "lease", "seen")
    for row in health["runs"]:
        runs.add_row(
            row["run_id"][:8],
            str(row["attempt"]),
            row["status"],
            row["stage"] or "",
            f"{float(row['progress'] or 0):.0f} %",
            f"{row['current_step'] or 0}/{row['total_steps'] or '?'}",
            f"${float(row['current_cost'] or 0):.2f}",
            row["worker"] or "none",
            f"{row['lease_seconds_left']:.0f} s",
            "" if row["seen_seconds_ago"] is None else f"{row['seen_seconds_ago']:.0f} s ago",
        )
    waiting = Table("job", "waits", "retries", "waits for")
    for row in health["waiting"]:
        waiting.add_row(row["job_id"][:8], f"{row['wait_seconds']:.0f} s", str(row["retry_count"]), row["waits_for"])
    workers = Table("worker", "version", "runs since", "seen", "runs", "problem")
    for row in health["workers"]:
        workers.add_row(
            row["name"],
            row["version"],
            "a single pass" if row["single_pass"] else f"{row['running_seconds']:.0f} s",
            f"{row['seen_seconds_ago']:.0f} s ago",
            f"{row['held']}/{row['slots']}",
            row["problem"] or "",
        )
    if health["no_worker"]:
        console.print(f"no worker runs: {health['no_worker']}; start one with `lora-worker run`")
    for table in (workers, runs, waiting):
        if table.row_count:
            console.print(table)
    for line in status_lines(health):
        console.print(line, highlight=False)


@app.command()
def resume(
    name: Annotated[str, typer.Argument(help="A base model or an endpoint; empty: whatever is held.")] = "",
) -> None:
    """Let held jobs go at once, when what they were held for is mended."""
    settings = _settings()
    resumed = _run(_with_services(settings, lambda services: services.queue.resume_training(name or None)))
    for held in resumed:
        typer.echo(f"{held['jobs']} jobs may go: {held['name'] or 'the image'} at {held['endpoint']}")
    if not resumed:
        typer.echo("nothing is held" + (f" for {name}" if name else ""))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check settings, database, storage and endpoint; each finding comes with its remedy."""
    from dataclasses import asdict

    from lora_worker.commands.doctor import Check, examine

    settings = _settings()
    checks: list[Check] = [
        Check("settings", True, "all set"),
        *_run(_with_services(settings, lambda services: examine(services))),
    ]
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        for check in checks:
            mark = {True: "ok  ", False: "FAIL", None: "-   "}[check.ok]
            typer.echo(f"{mark} {check.subject}: {check.finding}" + (f" → {check.remedy}" if check.remedy else ""))
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)


@app.command()
def migrate(
    database_url: Annotated[
        str,
        typer.Option(
            envvar=["LORA_WORKER_DATABASE_URL", "SUPABASE_DB_URL", "DATABASE_URL"],
            help="A direct connection: postgresql://…",
            show_envvar=True,
        ),
    ],
    down: Annotated[
        bool, typer.Option("--down", help="Take it all back instead. Refused while a run lives; users' rows stay.")
    ] = False,
    wait_seconds: Annotated[
        float, typer.Option(min=0, help="How long to wait for REST to read the new schema; 0: not at all.")
    ] = 600,
) -> None:
    """Bring the database to this worker's schema. May be repeated, and while workers run."""
    from lora_worker.database.migrations import migrate as apply
    from lora_worker.database.migrations import undo_migrations
    from lora_worker.errors import WorkerError

    try:
        done = undo_migrations(database_url) if down else apply(database_url)
    except WorkerError as error:
        raise _fail(str(error), 1) from None
    for name in done:
        typer.echo(f"{'undone' if down else 'applied'} {name}")
    if down or not wait_seconds:
        return
    from lora_worker.commands.reload import see_it_served

    try:
        see_it_served(database_url, seconds=wait_seconds, say=typer.echo)
    except WorkerError as error:
        raise _fail(str(error), 1) from None


@app.command()
def settings(as_json: AsJson = False) -> None:
    """Every setting: its variable, its default, what it means. Values are not shown."""
    from pydantic_core import PydanticUndefined

    from lora_worker.configuration.settings import Settings, variable_of

    rows = []
    for name, field in Settings.model_fields.items():
        default = "required" if field.is_required() else field.default
        if default is PydanticUndefined:
            default = "made at start"
        shown = ", ".join(default) if isinstance(default, tuple) else str("" if default is None else default)
        rows.append({"variable": variable_of(name), "default": shown, "meaning": field.description or ""})
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("variable", "default", "meaning")
    for row in rows:
        table.add_row(row["variable"], row["default"], row["meaning"])
    # A pipe has no width of its own, and a cut name is of no use.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@app.command()
def estimate(
    dataset_tokens: Annotated[int, typer.Option(min=0, help="Tokens of the dataset; 0: 200 for each pair.")] = 0,
    pairs: Annotated[int, typer.Option(min=0, help="Pairs of the dataset.")] = 0,
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    batch_size: Annotated[int, typer.Option(min=1)] = 4,
    base_model: Annotated[str, typer.Option(help="Empty: the worker's default.")] = "",
    gpu: Annotated[str, typer.Option(help="A GPU of the price table.")] = "A100-80GB",
    gpus: Annotated[int, typer.Option(min=0, max=8, help="How many; 0: as many as the endpoint has.")] = 0,
    job: Annotated[str, typer.Option(help="A job's id, instead of all the others.")] = "",
    as_json: AsJson = False,
) -> None:
    """What a training takes and costs, from the least to the most that can be expected."""
    from lora_worker.money.estimate import told

    settings = _settings()
    found = (
        _estimate_job(settings, job)
        if job
        else _estimate(settings, gpu, gpus, tokens=dataset_tokens, pairs=pairs, epochs=epochs,
                       batch_size=batch_size, base_model=base_model or None)
    )  # fmt: skip
    typer.echo(json.dumps(found, indent=2) if as_json else told(found))


def _estimate_job(settings: Settings, job: str) -> dict[str, Any]:
    from uuid import UUID

    try:
        job_id = UUID(job)
    except ValueError:
        raise _fail(f"--job: {job!r} is not the id of a job", 2) from None
    found: dict[str, Any] | None = _run(_with_services(settings, lambda services: services.queue.estimate_job(job_id)))
    if found is None:
        raise _fail(
            f"nothing can be said of job {job}: it does not exist, its dataset was not counted, its GPU is unknown, "
            "or no worker has started yet",
            1,
        )
    return found


def _estimate(settings: Settings, gpu: str, gpus: int, **work: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from lora_worker.money.estimate import Work
    from lora_worker.money.estimate import estimate as compute
    from lora_worker.money.pricing import load_prices
    from lora_worker.money.terms import make_terms

    if not work["tokens"] and not work["pairs"]:
        raise _fail("how large is the dataset? Give --dataset-tokens, --pairs or --job", 2)
    terms = make_terms(settings, load_prices(settings.price_table))
    if gpus:
        terms = terms.model_copy(update={"endpoint_gpu_count": gpus})
    found = compute(Work(gpu_type=gpu, **work), terms)
    if found is None:
        raise _fail(f"--gpu: {gpu!r} is not in the price table; {', '.join(card.type for card in terms.gpus)} are", 2)
    return asdict(found)


def main() -> None:
    """Entry point of the command."""
    app()


if __name__ == "__main__":
    main()
