"""The command line `lora-worker`. Each command imports its modules when it is called, so that `--help` is instant."""

from __future__ import annotations

import json
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lora_worker.configuration.settings import Settings

app = typer.Typer(
    help="Claims LoRA training jobs from Supabase, trains them on a GPU cloud, writes the results back.",
    no_args_is_help=True,
    add_completion=False,
    # With rich, --help would take twice as long.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


def _fail(text: str, code: int) -> typer.Exit:
    typer.echo(f"lora-worker: {text}", err=True)
    return typer.Exit(code)


def _settings() -> Settings:
    from lora_worker.errors import SettingsError
    from lora_worker.launchers.registry import load_settings
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

    from lora_worker.errors import ArgumentError, WorkerError

    try:
        return asyncio.run(work)
    except ArgumentError as error:
        raise _fail(str(error), 2) from None
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
    """Show the queue, the workers and the live runs."""
    from lora_worker.commands.status import print_status

    settings = _settings()
    health = _run(_with_services(settings, lambda services: services.queue.health()))
    if as_json:
        typer.echo(json.dumps(health, indent=2))
    else:
        print_status(health)


async def _with_services(settings: Settings, work: Any) -> Any:
    from lora_worker.services import open_services

    async with open_services(settings) as services:
        return await work(services)


@app.command()
def resume(
    name: Annotated[str, typer.Argument(help="A base model or an endpoint; empty: all held jobs.")] = "",
) -> None:
    """Release held jobs at once, after the reason why they were held is repaired."""
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
        bool,
        typer.Option("--down", help="Undo all migrations instead. Refused while a run is live; users' rows are kept."),
    ] = False,
    wait_seconds: Annotated[
        float, typer.Option(min=0, help="How long to wait for REST to read the new schema; 0: not at all.")
    ] = 600,
) -> None:
    """Migrate the database to this worker's schema. May be repeated, also while workers run."""
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
    from lora_worker.commands.reload import wait_until_served

    try:
        wait_until_served(database_url, seconds=wait_seconds, say=typer.echo)
    except WorkerError as error:
        raise _fail(str(error), 1) from None


@app.command()
def settings(as_json: AsJson = False) -> None:
    """List all settings: variable, default and meaning. Values are not shown."""
    from pydantic_core import PydanticUndefined

    from lora_worker.configuration.settings import variable_of
    from lora_worker.launchers.registry import LAUNCHERS

    rows = []
    fields = {name: (field, kind.settings) for kind in LAUNCHERS.values()
              for name, field in kind.settings.model_fields.items()}  # fmt: skip
    for name, (field, settings_class) in fields.items():
        default = "required" if field.is_required() else field.default
        if default is PydanticUndefined:
            default = "made at start"
        shown = ", ".join(default) if isinstance(default, tuple) else str("" if default is None else default)
        rows.append(
            {"variable": variable_of(name, settings_class), "default": shown, "meaning": field.description or ""}
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("variable", "default", "meaning")
    for row in rows:
        table.add_row(row["variable"], row["default"], row["meaning"])
    # A pipe has no width, and rich would cut the names of variables to fit its default.
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
    """Estimate time and cost of a training, as a range."""
    from lora_worker.commands.estimate import estimate_job, estimate_work, format_estimate
    from lora_worker.errors import ArgumentError
    from lora_worker.money.estimate import Work

    settings = _settings()
    if job:
        found = _run(_with_services(settings, lambda services: estimate_job(services, job)))
        if found is None:
            raise _fail(
                f"nothing can be said of job {job}: it does not exist, its dataset was not counted, its GPU is "
                "unknown, or no worker has started yet",
                1,
            )
    else:
        work = Work(
            tokens=dataset_tokens,
            pairs=pairs,
            epochs=epochs,
            batch_size=batch_size,
            base_model=base_model or None,
            gpu_type=gpu,
        )
        try:
            found = estimate_work(settings, work, gpu_count=gpus)
        except ArgumentError as error:
            raise _fail(str(error), 2) from None
    typer.echo(json.dumps(found, indent=2) if as_json else format_estimate(found))


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
