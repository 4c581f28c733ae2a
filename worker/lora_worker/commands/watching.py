"""Shows a job, or the queue, while it changes: a picture in a terminal, lines in a pipe, objects with --json."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import typer

from lora_worker.commands.job_progress import Change, change_of, change_words
from lora_worker.commands.references import find_job
from lora_worker.commands.terminal import make_console
from lora_worker.commands.waiting import POLL_SECONDS, exit_code, wait_until_ended
from lora_worker.database.job_reports import JobDetails
from lora_worker.database.queue_health import QueueHealth
from lora_worker.services import Services
from lora_worker.words import money

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Pause = Callable[[float], Awaitable[None]]


class _Picture(Protocol):
    def update(self, renderable: RenderableType, *, refresh: bool = False) -> None: ...


async def watch_job(services: Services, job: str, *, as_json: bool, pause: Pause = asyncio.sleep) -> int:
    """Show a job until it has ended; returns the exit code that says how.

    Raises:
        ArgumentError: there is no such job.
        ServiceError: the database did not answer for minutes, or refuses.
    """
    from lora_worker.commands.live_views import draw_job

    job_id = await find_job(services.queue, job)
    console = make_console()
    if as_json or not console.is_terminal:
        teller = _Teller(as_json=as_json)
        told = await wait_until_ended(
            services.queue, job_id, seen=teller.tell_job, poll_seconds=POLL_SECONDS, pause=pause
        )
        return exit_code(told)
    with _live(console) as picture:

        def draw(details: JobDetails) -> None:
            picture.update(draw_job(details, now=services.now(), width=console.width), refresh=True)

        return exit_code(
            await wait_until_ended(services.queue, job_id, seen=draw, poll_seconds=POLL_SECONDS, pause=pause)
        )


async def watch_queue(services: Services, *, as_json: bool, pause: Pause = asyncio.sleep) -> None:
    """Show the queue until it is interrupted.

    Raises:
        ServiceError: the database did not answer.
    """
    from lora_worker.commands.status import draw_status

    console = make_console()
    draws = console.is_terminal and not as_json
    teller = _Teller(as_json=as_json)
    shown: AbstractContextManager[_Picture | None] = _live(console) if draws else nullcontext()
    with shown as picture:
        while True:
            health = await services.queue.health()
            if picture is None:
                teller.tell_queue(health)
            else:
                picture.update(draw_status(health), refresh=True)
            await pause(POLL_SECONDS)


def _live(console: Console) -> AbstractContextManager[_Picture]:
    from rich.live import Live

    # Drawn at each answer only: nothing moves between two of them.
    return Live(console=console, auto_refresh=False, vertical_overflow="crop")


class _Teller:
    """Tells what has changed since the last look, a line each."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._last: Any = None

    def tell_job(self, details: JobDetails) -> None:
        """Print how the job stands, if that is news."""
        change = change_of(details)
        if self._as_json:
            self._tell_if_new(change, json.dumps(change))
        else:
            # A pipe is read later: a line for each tenth of the way is enough.
            self._tell_if_new(_coarse(change), change_words(change))

    def tell_queue(self, health: QueueHealth) -> None:
        """Print how the queue stands, if that is news."""
        counts = {key: health[key] for key in ("queued", "live_runs", "stray_launches", "failed_today", "spent_today")}
        runs = [{"job_id": run["job_id"], "stage": run["stage"], "progress": run["progress"]} for run in health["runs"]]
        line = (
            json.dumps({**counts, "no_worker": health["no_worker"], "runs": runs})
            if self._as_json
            else f"{counts['queued']} queued · {counts['live_runs']} live · {counts['failed_today']} failed in 24 h"
            f" · {money(counts['spent_today'])} today"
        )
        self._tell_if_new(line, line)

    def _tell_if_new(self, value: Any, line: str) -> None:
        if value != self._last:
            self._last = value
            typer.echo(line)


def _coarse(change: Change) -> tuple[Any, ...]:
    return (
        change["status"],
        change["stage"],
        int((change["progress"] or 0) // 10),
        change["waits_for"],
        change["run_id"],
    )
