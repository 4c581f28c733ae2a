"""The command line `lora-worker`. Each command imports its modules when it is called, so that `--help` is instant."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from lora_worker.commands import (
    ask,
    dashboard,
    dataset,
    deploy,
    erasing,
    exporting,
    gpu_server,
    guided,
    jobs,
    logs,
    money,
    queue,
    route,
    run,
    setup,
    submission,
    versions,
    webhooks,
)

app = typer.Typer(
    help="Claims LoRA training jobs from Supabase, trains them on a GPU cloud, writes the results back.",
    no_args_is_help=True,
    # With rich, --help would take twice as long.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"lora-worker {version('lora-worker')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Claims LoRA training jobs from Supabase, trains them on a GPU cloud, writes the results back."""


GROUPS = (
    run, queue, jobs, route, logs, submission, exporting, versions, ask, dataset, dashboard, money, guided, deploy,
    setup, erasing, gpu_server, webhooks,
)  # fmt: skip
for group in GROUPS:
    app.add_typer(group.commands)


def main() -> None:
    """Run the command line. A full disk under the output is one sentence, as every other fault is."""
    try:
        app()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # What is left in the buffer would fail again at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        typer.echo(f"lora-worker: the output can't be written ({error.strerror})", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
