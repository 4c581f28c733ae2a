"""The command `lora-worker run`: the daemon, or one pass of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from lora_worker.commands.terminal import (
    EXIT_FAILED,
    EXIT_USAGE,
    AsJson,
    command_group,
    refuse,
    run_or_exit,
    settings_or_exit,
)

if TYPE_CHECKING:
    from lora_contract.tracing import Traces
    from lora_worker.configuration.settings import Settings
    from lora_worker.observability.outbox import Outbox

_LAST_NOTICES_SECONDS = 1.0
_LAST_SPANS_SECONDS = 0.7
"""How long the last notices and spans may take: a stop takes ten seconds at the most, eight of them for the runs."""

_NOTICES_OF_PASS_SECONDS = 8.0
"""How long a single pass that did its work waits until its notices are sent: nothing else is left to end by then."""

commands = command_group()


@commands.command()
def run(
    once: Annotated[bool, typer.Option("--once", help="One full pass, then exit (for cron).")] = False,
) -> None:
    """Claim, launch, poll and settle until SIGTERM; or one full pass with --once."""
    from lora_contract.tracing import open_traces
    from lora_worker.errors import SettingsError
    from lora_worker.observability.outbox import open_outbox
    from lora_worker.observability.telemetry import log_missing_traces

    settings = settings_or_exit()
    try:
        outbox = open_outbox(settings)
    except SettingsError as error:
        raise refuse(str(error), EXIT_USAGE) from None
    traces = open_traces("lora-worker", instance=settings.name)
    if traces.problem:
        log_missing_traces(traces.problem)
    try:
        run_or_exit(_work(settings, outbox, traces, once=once))
        if once:
            # The work is done, and what it came to is told before the process ends.
            outbox.close(seconds=_NOTICES_OF_PASS_SECONDS)
    finally:
        outbox.close(seconds=_LAST_NOTICES_SECONDS)
        traces.close(seconds=_LAST_SPANS_SECONDS)


@commands.command()
def healthcheck(as_json: AsJson = False) -> None:
    """Ask the worker that runs on this machine whether it is alive, for a container's health check.

    Reads LORA_WORKER_HTTP_PORT and LORA_WORKER_HTTP_HOST from the environment, and no other setting. Works without a
    port, too. Exits with 1 and a sentence where the worker hangs or none runs.
    """
    from lora_worker.observability.healthcheck import check_health

    problem = check_health().problem
    if as_json:
        typer.echo(json.dumps({"ok": problem is None, "problem": problem}))
        if problem:
            raise typer.Exit(EXIT_FAILED)
    elif problem:
        raise refuse(problem)


async def _work(settings: Settings, outbox: Outbox, traces: Traces, *, once: bool) -> None:
    import asyncio
    import signal

    from lora_worker.duties.daemon import Daemon
    from lora_worker.duties.run_metrics import showing_runs
    from lora_worker.observability.health import serving_health
    from lora_worker.observability.metrics import show_zeroes
    from lora_worker.observability.outbox import NoticeKind
    from lora_worker.observability.watchdog import reporting_to_systemd
    from lora_worker.services import open_services

    async with open_services(settings, outbox=outbox, traces=traces) as services:
        daemon = Daemon(services)
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, daemon.stop)
        if once:
            await daemon.run_once()
            return
        show_zeroes((duty.name for duty in daemon.duties()), NoticeKind)
        with showing_runs(daemon.runs, lambda: daemon.problem):
            async with (
                serving_health(
                    settings,
                    alive=lambda: daemon.hang,
                    ready=lambda: daemon.problem,
                    wake=daemon.wake_ups.receive if settings.public_url else None,
                ),
                reporting_to_systemd(lambda: daemon.hang),
            ):
                await daemon.run()
