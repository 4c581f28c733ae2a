"""Commands that set a worker up and check it: `doctor`, `migrate`, `settings`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lora_worker.commands.terminal import (
    EXIT_FAILED,
    EXIT_USAGE,
    AsJson,
    checked_settings,
    command_group,
    confirm_or_exit,
    refuse,
    refuse_unattended,
    run_or_exit,
    show,
)
from lora_worker.configuration.environment import DATABASE_VARIABLES

if TYPE_CHECKING:
    from rich.console import Console

    from lora_worker.database.migrations import Migration

commands = command_group()


@commands.command()
def doctor(as_json: AsJson = False) -> None:
    """Check settings, database, storage and endpoint; each finding comes with its remedy."""
    from dataclasses import asdict

    from lora_worker.doctor.check import print_checks
    from lora_worker.doctor.examine import examine_all, wrong_settings
    from lora_worker.errors import SettingsError

    try:
        settings = checked_settings()
    except SettingsError as error:
        checks = [wrong_settings(error)]
    else:
        checks = run_or_exit(examine_all(settings))
    show([asdict(check) for check in checks], as_json=as_json, text=lambda console: print_checks(checks, console))
    if any(check.ok is False for check in checks):
        raise typer.Exit(EXIT_FAILED)


@commands.command()
def migrate(
    database_url: Annotated[
        str,
        typer.Option(
            help="postgresql://…, the direct connection or the session pooler; empty: "
            f"{', '.join(DATABASE_VARIABLES)} of the environment or .env."
        ),
    ] = "",
    down: Annotated[
        bool,
        typer.Option("--down", help="Undo all migrations instead. Refused while a run is live; users' rows are kept."),
    ] = False,
    storage_policies: Annotated[
        bool | None,
        typer.Option(
            "--storage-policies/--no-storage-policies",
            help="Whether signed-in users may store datasets and fetch their own models without an application "
            "(docs/api.md); neither: as it is.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    wait_seconds: Annotated[
        float, typer.Option(min=0, help="How long to wait for REST to read the new schema; 0: not at all.")
    ] = 600,
    as_json: AsJson = False,
) -> None:
    """Migrate the database to this worker's schema. May be repeated, also while workers run."""
    from lora_worker.database.migrations import migrate as apply
    from lora_worker.database.migrations import undo_migrations
    from lora_worker.errors import ArgumentError, WorkerError

    url = _database_url(database_url)
    if down and not yes:
        _ask_before_undoing(url)
    try:
        done = undo_migrations(url) if down else apply(url, storage_policies=storage_policies)
    except ArgumentError as error:
        raise refuse(str(error), EXIT_USAGE) from None
    except WorkerError as error:
        raise refuse(str(error)) from None
    # The answer of a program comes last, and alone on standard output.
    if not as_json:
        _print_migration(done, down=down)
    if wait_seconds and not down:
        _wait_until_served(url, wait_seconds, as_json=as_json)
    if as_json:
        changes = [{"kind": change.kind, "name": change.name, "change": change.change} for change in done.changes]
        show({"files": done.files, "changes": changes}, as_json=True, text=lambda _: None)


def _database_url(given: str) -> str:
    from lora_worker.configuration.environment import first_value
    from lora_worker.errors import SettingsError

    try:
        url = given.strip() or first_value(DATABASE_VARIABLES)
    except SettingsError as error:
        raise refuse(str(error), EXIT_USAGE) from None
    if not url:
        raise refuse(
            f"which database? Set {DATABASE_VARIABLES[0]} in the environment or in .env, or give --database-url: "
            "postgresql://… from the project's page “Connect”",
            EXIT_USAGE,
        )
    return url


def _ask_before_undoing(url: str) -> None:
    from lora_worker.database.migrations import describe_database

    what = f"undo all migrations of {describe_database(url)}, with the history of runs, budgets and holds"
    refuse_unattended(f"to {what}, give --yes: nobody can be asked here")
    confirm_or_exit(f"{what[0].upper()}{what[1:]}?")


def _print_migration(done: Migration, *, down: bool) -> None:
    if not done.changes:
        typer.echo("nothing to undo" if down else f"already current: {len(done.files)} files applied, nothing changed")
    for change in done.changes:
        typer.echo(f"{change.change} {change.kind} {change.name}")


def _wait_until_served(url: str, seconds: float, *, as_json: bool) -> None:
    from lora_worker.commands.reload import wait_until_served
    from lora_worker.errors import WorkerError

    try:
        wait_until_served(url, seconds=seconds, say=lambda text: typer.echo(text, err=as_json))
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
    owners = {name: [launcher for launcher, kind in LAUNCHERS.items() if name in kind.settings.model_fields]
              for kind in LAUNCHERS.values() for name in kind.settings.model_fields}  # fmt: skip
    fields = {name: (field, kind.settings) for kind in LAUNCHERS.values()
              for name, field in kind.settings.model_fields.items()}  # fmt: skip
    for name, (field, settings_class) in fields.items():
        meaning, of_some = field.description or "", len(owners[name]) < len(LAUNCHERS)
        if name == "launcher":
            meaning += f": {', '.join(LAUNCHERS)}"
        if of_some:
            meaning += f"; for LORA_WORKER_LAUNCHER={' or '.join(owners[name])}"
        required = "required with its launcher" if of_some else "required"
        default = required if field.is_required() else field.default
        if default is PydanticUndefined:
            default = "made at start"
        shown = ", ".join(default) if isinstance(default, tuple) else str("" if default is None else default)
        rows.append({"variable": variable_of(name, settings_class), "default": shown, "meaning": meaning})
    return rows


def _print_settings(rows: list[dict[str, str]], console: Console) -> None:
    from rich.table import Table

    table = Table("variable", "default", "meaning")
    for row in rows:
        table.add_row(row["variable"], row["default"], row["meaning"])
    console.print(table)
