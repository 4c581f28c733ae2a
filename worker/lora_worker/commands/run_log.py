"""Reads the log of a run: the kept one where the run has ended, else what its container has printed so far.

`logs` prints it, `show` its last lines. Whatever is shown went through `lora_contract.log_lines`, since a container has
written it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from lora_contract.log_lines import MAX_LOG_LINES, LineFilter, begun_run
from lora_worker.commands.terminal import printable
from lora_worker.database.job_reports import JobDetails, RunReport
from lora_worker.errors import ArgumentError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.launchers.base import ContainerLine, LaunchRef
from lora_worker.runs.steps.container_log import container_lines
from lora_worker.services import Services

LOOK_SECONDS = 2.0
"""How often a run that is followed is looked at."""
_KEPT_WITHIN_SECONDS = 60.0
"""A worker keeps the log of a run within a minute after its end."""
_MOST_SEEN = 20_000


@dataclass(frozen=True, slots=True)
class RunLog:
    """What there is of a run's log."""

    source: Literal["kept", "live", "none"]
    lines: list[str]
    note: str | None = None
    """Why there are no lines, as a sentence."""


def choose_run(details: JobDetails, attempt: int | None) -> RunReport:
    """The run of this attempt, by default the latest one.

    Raises:
        ArgumentError: the job has no such run.
    """
    runs, job = details["runs"], details["job"]
    if not runs:
        waits = f"; it waits for {printable(job['waits_for'])}" if job["waits_for"] else ""
        raise ArgumentError(f"job {job['job_id']} was not run yet, so it has no log{waits}")
    chosen = [run for run in runs if run["attempt"] == attempt] if attempt is not None else runs[-1:]
    if not chosen:
        known = f"{runs[0]['attempt']} to {runs[-1]['attempt']}" if len(runs) > 1 else str(runs[0]["attempt"])
        raise ArgumentError(f"job {job['job_id']} has no run {attempt}; choose --run from {known}")
    return chosen[0]


async def read_log(services: Services, details: JobDetails, run: RunReport) -> RunLog:
    """The log of a run as far as it can be had now.

    Raises:
        ServiceError: the storage or the launcher did not answer, or refuses; the text says why.
    """
    kept = await _read_kept(services, details, run)
    if kept is not None:
        return RunLog("kept", kept)
    obstacle = why_not_live(services, run)
    if obstacle is not None:
        return RunLog("none", [], obstacle)
    container = await _container_of(services, run)
    lines = container_lines(await _read_live(services, run, container), run["run_id"])
    if lines:
        return RunLog("live", lines)
    title = services.places.guide_of(run["endpoint"]).title
    if run["ended_at"] is not None:
        return RunLog("none", [], f"{title} has no lines of this run any more, and none were kept. {_end_of(run)}")
    if container is None:
        return RunLog(
            "none", [], f"no container has taken the run yet, and none that starts has printed a line{_problem(run)}"
        )
    return RunLog("none", [], f"its container {container} has printed no line that is shown")


async def last_lines(services: Services, details: JobDetails, run: RunReport, *, most: int = 10) -> list[str]:
    """The last lines of a run's kept log; empty where there is none."""
    return (await _read_kept(services, details, run) or [])[-most:]


def why_not_live(services: Services, run: RunReport) -> str | None:
    """Why the launcher's own log of this run can't be read, as a sentence; None where it can."""
    if run["external_job_id"] is None:
        yet = " yet" if run["ended_at"] is None else ""
        return f"the run was not launched{yet}, so it has no log. {_end_of(run)}".strip()
    elsewhere = services.places.left_alone(run["launcher"])
    if elsewhere is not None:
        return f"its log can't be read: {elsewhere}"
    if services.container_logs_at(run["endpoint"]) is None:
        title = services.places.guide_of(run["endpoint"]).title
        when = "it is kept when the run ends" if run["ended_at"] is None else f"none was kept. {_end_of(run)}"
        return f"the log of a container can't be read from {title} with these settings; {when}"
    return None


async def follow_log(
    services: Services,
    look: Callable[[], Awaitable[tuple[JobDetails, RunReport]]],
    show: Callable[[str], None],
    *,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> RunReport:
    """Show the lines of a run as they come, until it has ended and its log is kept; returns the run as it ended.

    Raises:
        ServiceError: a service did not answer, or refuses; the text says why.
    """
    follower = _Follower(services, show)
    waited_seconds = 0.0
    while True:
        details, run = await look()
        if run["ended_at"] is not None:
            kept = await _read_kept(services, details, run)
            if kept is not None or run["external_job_id"] is None or waited_seconds >= _KEPT_WITHIN_SECONDS:
                follower.show_rest(kept or [])
                return run
            waited_seconds += LOOK_SECONDS
        else:
            await follower.show_new(run)
        await pause(LOOK_SECONDS)


class _Follower:
    """What of a run's lines was shown already."""

    def __init__(self, services: Services, show: Callable[[str], None]) -> None:
        self._services = services
        self._show = show
        self._shown: dict[str, None] = {}
        self._container: str | None = None
        self._newest: datetime | None = None
        self._is_obstacle_told = False

    async def show_new(self, run: RunReport) -> None:
        """Show the lines of a live run that came since the last call, and those of some seconds from now on."""
        obstacle = why_not_live(self._services, run)
        if obstacle is not None:
            if run["external_job_id"] is not None and not self._is_obstacle_told:
                self._show(obstacle)
                self._is_obstacle_told = True
            return
        try:
            container = await _container_of(self._services, run)
            if container is None or container != self._container:
                self._container = container
                found = await _read_live(self._services, run, container)
                self._newest = max((line.at for line in found if line.at is not None), default=None)
                self.show_rest(container_lines(found, run["run_id"]))
            if container is not None:
                await self._stream(run, container)
        except ServiceUnavailableError:
            # The next look comes soon, and nothing is lost: it begins with the newest line that was shown.
            return

    async def _stream(self, run: RunReport, container: str) -> None:
        reader, line_filter = self._services.container_logs_at(run["endpoint"]), LineFilter()
        assert reader is not None
        async for line in reader.follow(_launch_of(run), container, since=self._newest):
            self._newest = line.at or self._newest
            begun = begun_run(line.text)
            if begun not in {None, run["run_id"]}:
                # The container has gone on to another user's run.
                return
            for text in [f"system: {line.text}"] if line.is_launchers else line_filter.take(line.text):
                self._take(text)

    def show_rest(self, lines: list[str]) -> None:
        """Show those of these lines that were not shown yet."""
        for line in lines:
            self._take(line)

    def _take(self, line: str) -> None:
        if line in self._shown:
            return
        self._shown[line] = None
        if len(self._shown) > _MOST_SEEN:
            del self._shown[next(iter(self._shown))]
        self._show(line)


async def _read_kept(services: Services, details: JobDetails, run: RunReport) -> list[str] | None:
    if run["ended_at"] is None or details["job"]["user_id"] is None:
        return None
    return await services.logs.read(UUID(details["job"]["user_id"]), UUID(run["run_id"]))


async def _container_of(services: Services, run: RunReport) -> str | None:
    """The container that has the launch; None before one has taken it."""
    return (await services.places.observe(_launch_of(run))).container


async def _read_live(services: Services, run: RunReport, container: str | None) -> list[ContainerLine]:
    reader = services.container_logs_at(run["endpoint"])
    assert reader is not None
    try:
        return await reader.read(_launch_of(run), container, most_lines=MAX_LOG_LINES)
    except ServiceRefusedError as error:
        raise ServiceRefusedError(error.service, f"the log can't be read: {error}", status=error.status) from None


def _launch_of(run: RunReport) -> LaunchRef:
    return LaunchRef(run["endpoint"], run["external_job_id"] or "")


def end_of(run: RunReport) -> str:
    """How a run ended, and why, as it may be printed."""
    reason = f" ({run['error_code']}): {run['error_message']}" if run["error_code"] else ""
    return printable(f"{run['status']}{reason}")


def _end_of(run: RunReport) -> str:
    return "" if run["ended_at"] is None else f"The run ended as {end_of(run)}"


def _problem(run: RunReport) -> str:
    return f"; {printable(run['problem'])}" if run["problem"] else ""
