"""The pages that show something: overview, jobs, one job, spend, workers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from lora_worker.dashboard.actions import DONE
from lora_worker.dashboard.charts import loss_curve, spend_bars, timeline
from lora_worker.dashboard.reads import Reading
from lora_worker.dashboard.rendering import desk_of, render
from lora_worker.dashboard.results import read_result
from lora_worker.database.job_reports import JobFilter, JobPage, RunReport, finished_run
from lora_worker.database.job_states import ENDED, LIVE, JobStatus
from lora_worker.database.queue_health import QueueHealth

SPANS = (1, 7, 30, 90)
"""For how many days spend and failures can be shown."""

_LISTED, _RECENT, _WAITING = 50, 8, 20
_MAX_FILTER = 200
_TABLE_POINTS = 40
"""Rows of the table beside a curve."""


def _done(request: Request) -> str | None:
    """Return the sentence for what was just done: the URL names it, and nothing of the URL is shown."""
    return DONE.get(request.query_params.get("done", ""))


async def overview(request: Request) -> Response:
    """Show what runs, what waits and why, what ended, and what was spent today."""
    board = desk_of(request).board
    health, live, queued, ended = await asyncio.gather(
        board.health(),
        board.jobs(_LISTED, {"statuses": list(LIVE)}),
        board.jobs(_LISTED, {"statuses": ["queued"]}),
        board.jobs(_RECENT, {"statuses": list(ENDED)}),
    )
    return render(
        request, "overview.html", readings=(health, live, queued, ended), done=_done(request),
        health=health.value, live=live.value, ended=ended.value, waiting=_longest_waiting(health.value, queued.value),
    )  # fmt: skip


def _longest_waiting(health: QueueHealth | None, queued: JobPage | None) -> list[dict[str, Any]] | None:
    """Return the jobs that have waited longest, with the names that the list of queued jobs knows."""
    if health is None:
        return None
    known: dict[str, Mapping[str, Any]] = {row["job_id"]: row for row in (queued["jobs"] if queued else [])}
    nameless = {"name": None, "base_model": None}
    return [{**known.get(row["job_id"], nameless), **row} for row in health["waiting"][:_WAITING]]


async def jobs(request: Request) -> Response:
    """List jobs, newest first, by status, user, base model or error code."""
    asked = {
        name: request.query_params.get(name, "").strip()
        for name in ("status", "user_id", "base_model", "error_code", "cursor")
    }
    if any(len(value) > _MAX_FILTER for value in asked.values()) or asked["status"] not in {"", *JobStatus}:
        raise HTTPException(400, "this filter is none of the list's")
    if asked["user_id"] and not _is_uuid(asked["user_id"]):
        raise HTTPException(400, "a user is named by an id, such as 8c5f0f5e-53a4-4ad0-8f5e-0d6fd6f3a1c2")
    wanted: JobFilter = {
        "statuses": [asked["status"]] if asked["status"] else None,
        "user_id": asked["user_id"] or None,
        "base_model": asked["base_model"] or None,
        "error_code": asked["error_code"] or None,
        "cursor": asked["cursor"] or None,
    }
    found = await desk_of(request).board.jobs(_LISTED, wanted)
    return render(request, "jobs.html", readings=[found], found=found.value, asked=asked, statuses=list(JobStatus))


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


async def job(request: Request) -> Response:
    """Show a job: its state, its curve, and every run with its stages."""
    board = desk_of(request).board
    found = await board.job(request.path_params["job_id"])
    details = found.value
    if details is None:
        return _unread(request, found, "there is no job of this id")
    latest = details["runs"][-1] if details["runs"] else None
    return render(
        request, "job.html", readings=[found], done=_done(request), here="jobs",
        job=details["job"], runs=[_run(run, board.now()) for run in reversed(details["runs"])], latest=latest,
        curve=loss_curve(details["points"], latest and latest["total_steps"]),
        points=_thinned(details["points"], _TABLE_POINTS), artifact=details["artifact"], costs=details["costs"],
        result=read_result(details),
    )  # fmt: skip


def _unread(request: Request, found: Reading[Any], missing: str) -> Response:
    """Show why a job can't be read.

    Raises:
        HTTPException: it was read, and what is shown of it is not there.
    """
    if found.problem is None:
        raise HTTPException(404, missing)
    return render(request, "unread.html", readings=[found], here="jobs")


async def samples(request: Request) -> Response:
    """Show what base and adapter answered to the same prompts."""
    board = desk_of(request).board
    found = await board.job(request.path_params["job_id"])
    details = found.value
    if details is None:
        return _unread(request, found, "there is no job of this id")
    run, user_id = finished_run(details), details["job"]["user_id"]
    readings: list[Reading[Any]] = [found]
    if run is not None and user_id is not None:
        readings.append(await board.answers(UUID(user_id), UUID(run["run_id"])))
    return render(
        request, "samples.html", readings=readings, here="jobs", job=details["job"], is_finished=run is not None,
        answers=readings[-1].value if len(readings) > 1 else None,
    )  # fmt: skip


async def run_log(request: Request) -> Response:
    """Show the kept log of a run."""
    board = desk_of(request).board
    job_id, run_id = request.path_params["job_id"], str(request.path_params["run_id"])
    found = await board.job(job_id)
    details = found.value
    run = next((run for run in details["runs"] if run["run_id"] == run_id), None) if details else None
    if details is None or run is None:
        return _unread(request, found, "there is no run of this id")
    user_id = details["job"]["user_id"]
    if run["ended_at"] is None or user_id is None:
        log: Reading[list[str] | None] = Reading(None, board.now())
    else:
        log = await board.log(UUID(user_id), UUID(run_id))
    return render(request, "log.html", readings=(found, log), here="jobs", job=details["job"], run=run, lines=log.value)


def _run(run: RunReport, now: datetime) -> dict[str, Any]:
    return {**run, "timeline": timeline(run["stages"], now=now, ended_at=run["ended_at"])}


def _thinned(points: list[Any], at_most: int) -> list[Any]:
    """Return evenly spaced points, the last one included."""
    if len(points) <= at_most:
        return points
    return [points[(place * (len(points) - 1)) // (at_most - 1)] for place in range(at_most)]


async def spend(request: Request) -> Response:
    """Show spend by day, user and base model, and failures by code."""
    try:
        days = int(request.query_params.get("days", "30"))
    except ValueError:
        days = 0
    if days not in SPANS:
        raise HTTPException(400, f"spend is shown for {', '.join(map(str, SPANS))} days")
    board = desk_of(request).board
    by_day, by_user, by_model, failures, budgets = await asyncio.gather(
        board.costs(days, "day"), board.costs(days, "user"), board.costs(days, "model"), board.failures(days),
        board.budgets(),
    )  # fmt: skip
    return render(
        request, "spend.html", readings=(by_day, by_user, by_model, failures, budgets), days=days, spans=SPANS,
        budgets=budgets.value,
        by_day=by_day.value, by_user=by_user.value, by_model=by_model.value, failures=failures.value,
        bars=spend_bars(_every_day(by_day.value or [], board.now(), days)),
    )  # fmt: skip


def _every_day(rows: Sequence[Mapping[str, Any]], now: datetime, days: int) -> list[Mapping[str, Any]]:
    """Return a row for each day of the time, also for those on which nothing was billed."""
    known = {str(row["key"]): row for row in rows}
    keys = [f"{now.astimezone(UTC) - timedelta(days=day):%Y-%m-%d}" for day in range(days - 1, -1, -1)]
    return [known.get(key, {"key": key, "usd": 0}) for key in keys]


async def workers(request: Request) -> Response:
    """Show the workers, their endpoints, and what is held."""
    health = await desk_of(request).board.health()
    return render(request, "workers.html", readings=[health], done=_done(request), health=health.value)
