"""The queue as text that fits 80 columns: a summary, tables, and lines about what is held or ill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypedDict

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lora_worker.commands.job_views import borderless
from lora_worker.commands.terminal import printable
from lora_worker.database.queue_health import FailedJob, LiveRun, LivingWorker, QueueHealth, WaitingJob
from lora_worker.services import Services
from lora_worker.words import duration, money, percent, plain, short_id

_MOST_ROWS = 20
"""Of each table; the JSON has more."""


class ShownPlace(TypedDict):
    """An endpoint of the routing table, as workers saw it last."""

    place: str
    endpoint: str
    launches: int
    slots: int | None
    without_gpu_seconds: float
    passed_over_seconds: float
    problem: str | None


async def look_at_places(services: Services) -> list[ShownPlace]:
    """Return the endpoints of the routing table; none where there is no table.

    Raises:
        ServiceError: the database did not answer.
    """
    if services.routes is None:
        return []
    places = {place.endpoint: place for place in services.places.all}
    return [
        {
            "place": places[row["endpoint"]].name,
            "endpoint": row["endpoint"],
            "launches": row["launches"],
            "slots": places[row["endpoint"]].slots,
            "without_gpu_seconds": row["without_gpu_seconds"],
            "passed_over_seconds": row["passed_over_seconds"],
            "problem": row["problem"],
        }
        for row in await services.queue.training_places(list(places), base_model="")
    ]


def draw_status(health: QueueHealth, places: Sequence[ShownPlace] = ()) -> RenderableType:
    """Return the state of the queue as a terminal shows it."""
    parts: list[RenderableType] = [Text(line, style=style) for line, style in _summary(health)]
    for table in (
        _live(health["runs"]),
        _waiting(health["waiting"], health["queued"]),
        _failed(health["failed"], health["failed_today"]),
        _workers(health["workers"]),
        _places(places),
    ):
        if table.row_count:
            parts += [Text(), table]
    lines = status_lines(health)
    if lines:
        parts += [Text(), *(Text(line, style="yellow") for line in lines)]
    return Group(*parts)


def _summary(health: QueueHealth) -> Iterator[tuple[str, str]]:
    oldest = health["oldest_wait_seconds"]
    queued = f"{health['queued']} queued" + (f" (oldest {duration(oldest)})" if oldest else "")
    yield f"{queued} · {health['live_runs']} live · {health['failed_today']} failed in 24 h", "bold"
    yield f"spent today (UTC): {money(health['spent_today'])}", ""
    ill = [(health["expired_leases"], "without a worker"), (health["stray_launches"], "stray launches")]
    if any(count for count, _ in ill):
        yield " · ".join(f"{count} {what}" for count, what in ill if count), "yellow"
    if health["no_worker"]:
        yield f"no worker runs: {printable(health['no_worker'])}; start one with `lora-worker run`", "yellow"


def _table(*headings: str, last: str) -> Table:
    """A table whose last column takes the rest of the line, and may go on below."""
    table = borderless()
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    table.add_column(last, overflow="fold", ratio=1)
    return table


def _live(runs: list[LiveRun]) -> Table:
    table = _table("live", "stage", "done", "cost", "seen", last="model")
    for run in runs[:_MOST_ROWS]:
        seen = run["seen_seconds_ago"]
        table.add_row(
            short_id(run["job_id"]),
            plain(printable(run["stage"] or run["status"]))[:24],
            percent(run["progress"] or 0),
            money(run["current_cost"] or 0),
            "" if seen is None else duration(seen),
            printable(run["base_model"]) + (f" (run {run['attempt']})" if run["attempt"] > 1 else ""),
        )
    _count_rest(table, len(runs))
    return table


def _waiting(jobs: list[WaitingJob], queued: int) -> Table:
    table = _table("waiting", "since", last="waits for")
    for job in jobs[:_MOST_ROWS]:
        table.add_row(short_id(job["job_id"]), duration(job["wait_seconds"]), printable(job["waits_for"]))
    _count_rest(table, queued)
    return table


def _failed(jobs: list[FailedJob], count: int) -> Table:
    table = _table("failed", "ago", last="why")
    for job in jobs[:_MOST_ROWS]:
        why = ": ".join(printable(text) for text in (job["error_code"], job["error_message"]) if text)
        table.add_row(Text(short_id(job["job_id"]), style="red"), duration(job["seconds_ago"]), why)
    _count_rest(table, count)
    return table


def _workers(workers: list[LivingWorker]) -> Table:
    table = _table("runs", "seen", last="worker")
    for worker in workers[:_MOST_ROWS]:
        notes = [
            "a single pass" if worker["single_pass"] else f"up {duration(worker['running_seconds'])}",
            f"version {printable(worker['version'])}",
            *(["draining"] if worker["draining"] else []),
            *([printable(worker["problem"])] if worker["problem"] else []),
        ]
        table.add_row(
            f"{worker['held']}/{worker['slots']}",
            duration(worker["seen_seconds_ago"]),
            f"{printable(worker['name'])} ({', '.join(notes)})",
        )
    _count_rest(table, len(workers))
    return table


def _places(places: Sequence[ShownPlace]) -> Table:
    table = _table("launches", "without a GPU", last="endpoint")
    for each in places:
        notes = [
            each["endpoint"],
            *([f"left out for {duration(each['passed_over_seconds'])}"] if each["passed_over_seconds"] else []),
            *([each["problem"]] if each["problem"] else []),
        ]
        table.add_row(
            str(each["launches"]) + (f" of {each['slots']}" if each["slots"] else ""),
            duration(each["without_gpu_seconds"]) if each["without_gpu_seconds"] else "",
            f"{each['place']} ({printable(', '.join(notes))})",
        )
    return table


def _count_rest(table: Table, count: int) -> None:
    if count > _MOST_ROWS and table.row_count:
        table.add_row(f"+{count - _MOST_ROWS} more")


def status_lines(health: QueueHealth) -> list[str]:
    """Return the lines below the tables: what operators hold, runs that can't go on, endpoints and held jobs."""
    held = health["held"]
    lines = [
        f"held by an operator for {duration(row['held_seconds'])}: "
        f"{'user ' + row['user_id'] if row['user_id'] else 'all jobs'}"
        + (f" ({row['reason']})" if row["reason"] else "")
        for row in held["operator_holds"]
    ]
    lines += [f"job {short_id(run['job_id'])}: {run['problem']}" for run in health["runs"] if run["problem"]]
    lines += [
        f"endpoint {row['endpoint']}: {row['problem']}"
        + (f" (starting for {duration(row['starting_seconds'])})" if row["starting_seconds"] else "")
        for row in held["endpoint_problems"]
    ]
    lines += [
        f"held: {row['jobs']} jobs, for {row['name'] or 'the image'} at {row['endpoint']} ({row['error_code']}, "
        f"{row['users']} users); next try in {duration(row['probe_in_seconds'])}, or `lora-worker resume`"
        for row in held["breakers"]
    ]
    if len({(row["launcher"], row["endpoint"]) for row in health["endpoints"]}) > 1:
        lines += [f"{row['launches']} launches at {row['endpoint']} ({row['launcher']})" for row in health["endpoints"]]
    return [printable(line) for line in lines]
