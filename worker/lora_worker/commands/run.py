"""The command `lora-worker run`: the daemon, or one pass of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lora_worker.commands.terminal import command_group, run_or_exit, settings_or_exit

if TYPE_CHECKING:
    from lora_worker.configuration.settings import Settings

commands = command_group()


@commands.command()
def run(
    once: Annotated[bool, typer.Option("--once", help="One full pass, then exit (for cron).")] = False,
) -> None:
    """Claim, launch, poll and settle until SIGTERM; or one full pass with --once."""
    settings = settings_or_exit()
    run_or_exit(_work(settings, once=once))


async def _work(settings: Settings, *, once: bool) -> None:
    import asyncio
    import signal

    from lora_worker.duties.daemon import Daemon
    from lora_worker.duties.run_metrics import showing_runs
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
        with showing_runs(daemon.runs.held, lambda: daemon.problem):
            async with serving_health(settings, alive=lambda: daemon.hang, ready=lambda: daemon.problem):
                await daemon.run()
