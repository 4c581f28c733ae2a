"""The REST API's view of an endpoint's workers: their list, their releases and their logs."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import datetime
from itertools import islice
from typing import Any

from starlette.responses import StreamingResponse

from sandbox.runpod.endpoint import Endpoint
from sandbox.runpod.platform import Platform
from sandbox.runpod.pool import Worker
from sandbox.runpod.rest.account import as_time
from sandbox.runpod.rest.api import Call, Operation
from sandbox.runpod.rest.problems import ProblemError
from sandbox.runpod.rest.requests import LogQuery
from sandbox.runpod.worker_logs import Line, WorkerLog

_STATUSES = ("running", "idle", "initializing", "throttled", "unhealthy")
_POLL_SECONDS = 0.05


def worker_operations(platform: Platform) -> list[Operation]:
    """Return the operations on the workers of all endpoints."""
    return [
        Operation("listEndpointWorkers", "GET", "serverless/{id}/workers", lambda c: _list_workers(platform, c.id)),
        Operation("listEndpointReleases", "GET", "serverless/{id}/releases", lambda c: _list_releases(platform, c.id)),
        Operation(
            "getWorkerLogs",
            "GET",
            "serverless/{id}/workers/{worker_id}/logs",
            lambda c: _stream_log(platform, c),
            query=LogQuery,
        ),
    ]


def _list_workers(platform: Platform, endpoint_id: str) -> dict[str, Any]:
    version = platform.account.endpoints.get(endpoint_id).version
    endpoint = platform.get(endpoint_id)
    workers = [] if endpoint is None else [*_listed(endpoint), *_throttled(endpoint)]
    counts = Counter(worker["status"].lower() for worker in workers)
    return {
        "workers": workers,
        "summary": {**{status: counts[status] for status in _STATUSES}, "total": len(workers)},
        "endpointVersion": version,
    }


def _listed(endpoint: Endpoint) -> list[dict[str, Any]]:
    pool, busy, now = endpoint.pool, endpoint.busy(), endpoint.clock()
    listed = [_describe(worker, pool.state(worker, busy), endpoint, now) for worker in pool.all()]
    # RunPod starts the container of such a worker again and again, so it stays in the list.
    if pool.failed is not None:
        listed.append(_describe(pool.failed, "unhealthy", endpoint, now))
    return listed


def _describe(worker: Worker, state: str, endpoint: Endpoint, now: float) -> dict[str, Any]:
    runs = worker.image.handler_module is not None
    return {
        "id": worker.id,
        "status": state.upper(),
        "isStale": endpoint.pool.is_stale(worker),
        "version": worker.image.version,
        "gpuCount": worker.image.gpu_count,
        "image": worker.image.name,
        "uptimeSeconds": max(int(now - worker.started_at), 0) if runs else None,
        "gpuTypeId": worker.placement.gpu,
        "dataCenterId": worker.placement.data_center,
        "startedAt": as_time(worker.started_at) if runs else None,
    }


def _throttled(endpoint: Endpoint) -> list[dict[str, Any]]:
    pool = endpoint.pool
    wanted = min(pool.max_workers, max(endpoint.jobs.waiting(), pool.min_workers)) if pool.is_throttled else 0
    return [
        {
            "id": f"{endpoint.settings.endpoint}{number}",
            "status": "THROTTLED",
            "isStale": False,
            "version": pool.image.version,
            "gpuCount": pool.image.gpu_count,
            "image": pool.image.name,
            "uptimeSeconds": None,
            "gpuTypeId": None,
            "dataCenterId": None,
            "startedAt": None,
        }
        for number in range(wanted)
    ]


def _list_releases(platform: Platform, endpoint_id: str) -> dict[str, Any]:
    configuration, endpoint = platform.account.endpoints.get(endpoint_id), platform.get(endpoint_id)
    running = Counter(worker.image.version for worker in endpoint.pool.all()) if endpoint is not None else Counter()
    latest, total = running[configuration.version], running.total()
    return {
        "endpointVersion": configuration.version,
        "rollout": {
            "inProgress": latest < total,
            "workersOnLatest": latest,
            "workersTotal": total,
            "percentOnLatest": round(100 * latest / total) if total else 0,
        },
        "releases": [{**release, "workerCount": running[release["version"]]} for release in configuration.releases],
    }


def _stream_log(platform: Platform, call: Call) -> StreamingResponse:
    platform.account.endpoints.get(call.id)
    endpoint = platform.get(call.id)
    log = None if endpoint is None else endpoint.pool.logs.get(call.ids["worker_id"])
    if endpoint is None or log is None:
        raise ProblemError(404, "There is no such worker, or its log is no longer kept.")
    return stream_log(log, call, lambda: not endpoint.is_closing)


def stream_log(log: WorkerLog, call: Call, goes_on: Callable[[], bool]) -> StreamingResponse:
    """Answer a call for a log with its lines as events, until it is dropped or `goes_on` says no."""
    source = call.query.source

    def wanted(line: Line) -> bool:
        return source in {None, line.source}

    first = _first_number(log, call, wanted)
    return StreamingResponse(
        _events(log, first, wanted, goes_on),
        headers={"Cache-Control": "no-cache", "Connection": "keep-alive", "X-Accel-Buffering": "no"},
        media_type="text/event-stream",
    )


def _first_number(log: WorkerLog, call: Call, wanted: Callable[[Line], bool]) -> int:
    """Return the number of the first line to send. A cursor counts more than `since`, and that more than `tail`."""
    cursor = call.headers.get("last-event-id")
    if cursor is not None:
        at, _, number = cursor.partition("/")
        return (
            int(number) + 1 if re.fullmatch(r"\d{1,18}", number) else _first_since(log.lines, _seconds(at), after=True)
        )
    if call.query.since is not None:
        return _first_since(log.lines, _seconds(call.query.since), after=False)
    newest_first = (line.number for line in reversed(log.lines) if wanted(line))
    last = log.lines[-1].number if log.lines else 0
    return min(islice(newest_first, call.query.tail), default=last + 1)


def _first_since(lines: Iterable[Line], seconds: float, *, after: bool) -> int:
    # The API tells whole seconds only, so lines are compared by these.
    early = (line.number for line in lines if int(line.at) < seconds or (after and int(line.at) == seconds))
    return max(early, default=0) + 1


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise ProblemError(422, "The query parameters are not valid.", ["$.since: not a time of RFC 3339"]) from None


async def _events(
    log: WorkerLog, first: int, wanted: Callable[[Line], bool], goes_on: Callable[[], bool]
) -> AsyncIterator[str]:
    """Send the lines from `first` on as events, and then each new one, for as long as the log is kept."""
    while True:
        for line in [line for line in log.lines if line.number >= first]:
            first = line.number + 1
            if wanted(line):
                yield _event(line)
        if not log.is_kept or not goes_on():
            return
        await asyncio.sleep(_POLL_SECONDS)


def _event(line: Line) -> str:
    at = as_time(line.at)
    return f"id: {at}/{line.number:012}\ndata: {json.dumps({'ts': at, 'source': line.source, 'line': line.text})}\n\n"
