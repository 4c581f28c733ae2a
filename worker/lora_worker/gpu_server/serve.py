"""Serves the GPU server's API and runs its jobs, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from lora_worker.errors import GpuServerError
from lora_worker.gpu_server.api import GpuServerApi
from lora_worker.gpu_server.jobs import Jobs
from lora_worker.gpu_server.runner import Machine, Runner
from lora_worker.listening import listen, serve_until_stopped, url_of

_MAX_CONNECTIONS = 256


async def serve_gpus(machine: Machine, *, key: str, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. Running jobs are stopped with a checkpoint, and go on at the next start.

    `ready` is called once with the server's address; port 0 means any free one.

    Raises:
        PortTakenError: the port can't be opened.
        GpuServerError: the folder or the file of the jobs can't be used.
    """
    jobs = open_jobs(machine.folder)
    try:
        with listen(host, port) as listening:
            runner = Runner(jobs, machine, clock=time.monotonic)
            app = GpuServerApi(jobs, runner, key, len(machine.gpus), time.time).app()
            serving = serve_until_stopped(
                app, listening, most_connections=_MAX_CONNECTIONS, ready=lambda: ready(url_of(listening, host))
            )
            await _until_one_ends(asyncio.create_task(runner.run()), asyncio.create_task(serving))
    except sqlite3.Error as error:
        raise GpuServerError(f"the file of the jobs can't be written ({error})") from None
    finally:
        jobs.close()


async def _until_one_ends(running: asyncio.Task[None], serving: asyncio.Task[None]) -> None:
    await asyncio.wait({running, serving}, return_when=asyncio.FIRST_COMPLETED)
    fault = _fault_of(running)
    for task in (running, serving):
        task.cancel()
    await asyncio.gather(running, serving, return_exceptions=True)
    if fault is not None:
        raise fault


def open_jobs(folder: Path) -> Jobs:
    """Open the jobs in a folder, which is made if it is not there.

    Raises:
        GpuServerError: it can't be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GpuServerError(f"{folder} can't be made ({error.strerror}): choose another with --data") from None
    return Jobs(folder / "jobs.sqlite", now=time.time)


def _fault_of(running: asyncio.Task[None]) -> BaseException | None:
    """What ended the runner, which goes on for ever otherwise; None while it runs."""
    if not running.done() or running.cancelled():
        return None
    error = running.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError):
        return GpuServerError(f"{error.filename or 'a file'} can't be written ({error.strerror})")
    return error
