"""Commands that set a worker up and check it: `doctor`, `migrate`, `settings`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lora_worker.commands.terminal import (
    EXIT_FAILED,
    AsJson,
    checked_settings,
    command_group,
    refuse,
    show,
    with_services,
)

if TYPE_CHECKING:
    from rich.console import Console

commands = command_group()


@commands.command()
def doctor(as_json: AsJson = False) -> None:
    """Check settings, database, storage and endpoint; each finding comes with its remedy."""
    from dataclasses import asdict

    from lora_worker.doctor.check import Check, print_checks
    from lora_worker.doctor.examine import examine
    from lora_worker.errors import SettingsError

    try:
        settings = checked_settings()
    except SettingsError as error:
        remedy = "set it in the environment or in .env; `lora-worker settings` lists all of them"
        checks = [Check("settings", False, str(error), remedy)]
    else:
        checks = [Check("settings", True, "all set"), *with_services(examine, settings)]
    show([asdict(check) for check in checks], as_json=as_json, text=lambda console: print_checks(checks, console))
    if any(check.ok is False for check in checks):
        raise typer.Exit(EXIT_FAILED)


@commands.command()
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
        raise refuse(str(error)) from None
    for name in done:
        typer.echo(f"{'undone' if down else 'applied'} {name}")
    if down or not wait_seconds:
        return
    from lora_worker.commands.reload import wait_until_served

    try:
        wait_until_served(database_url, seconds=wait_seconds, say=typer.echo)
    except WorkerError as error:
        raise refuse(str(error)) from None


@commands.command()
def settings(as_json: AsJson = False) -> None:
    """List all settings: variable, default and meaning. Values are not shown."""
    rows = setting_rows()
    show(rows, as_json=as_json, text=lambda console: _print_settings(rows, console))


def setting_rows() -> list[dict[str, str]]:
    """Return all settings, those of every launcher included: variable, default and meaning of each."""
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
    return rows


def _print_settings(rows: list[dict[str, str]], console: Console) -> None:
    from rich.table import Table

    table = Table("variable", "default", "meaning")
    for row in rows:
        table.add_row(row["variable"], row["default"], row["meaning"])
    console.print(table)
