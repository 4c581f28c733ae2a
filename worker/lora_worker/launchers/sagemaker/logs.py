"""What the containers of training jobs have printed, from CloudWatch Logs: one stream for each start of a job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from lora_worker.launchers.base import ContainerLine
from lora_worker.launchers.sagemaker.api import AwsApi

GROUP = "/aws/sagemaker/TrainingJobs"
_MOST_STREAMS = 50
"""Of so many starts of a job the last one is looked for."""
_MOST_EVENTS = 10_000
"""The most that one answer of CloudWatch Logs holds, within 1 MB."""
_FOLLOW_SECONDS = 10.0
_PAUSE_SECONDS = 2.0


async def read_log(api: AwsApi, region: str, name: str, *, most_lines: int) -> list[ContainerLine]:
    """The last lines of a job's last container, oldest first; none where it has printed nothing yet.

    Raises:
        ServiceError: they can't be read.
    """
    stream = await _last_stream(api, region, name)
    if stream is None:
        return []
    request = _events_of(stream, limit=max(1, min(most_lines, _MOST_EVENTS)), startFromHead=False)
    answer = await api.call(region, "logs", "get_log_events", request, expected=_is_missing) or {}
    return _lines_of(stream, answer)[-most_lines:]


async def follow_log(api: AwsApi, region: str, name: str, *, since: datetime | None) -> AsyncIterator[ContainerLine]:
    """The lines of a job's last container as they come, until some seconds pass without one.

    Raises:
        ServiceError: they can't be read.
    """
    stream = await _last_stream(api, region, name)
    if stream is None:
        return
    request = _events_of(stream, startFromHead=True)
    if since is not None:
        request["startTime"] = max(int(since.timestamp() * 1000), 0)
    last_at = time.monotonic()
    while time.monotonic() - last_at < _FOLLOW_SECONDS:
        answer = await api.call(region, "logs", "get_log_events", request, expected=_is_missing) or {}
        lines = _lines_of(stream, answer)
        for line in lines:
            yield line
        # At the end of a stream the token stays the same.
        token = answer.get("nextForwardToken")
        is_at_end = not token or token == request.get("nextToken")
        if token:
            request["nextToken"] = token
        if lines:
            last_at = time.monotonic()
        elif is_at_end:
            await asyncio.sleep(_PAUSE_SECONDS)


async def _last_stream(api: AwsApi, region: str, name: str) -> str | None:
    # Without the slash a name would find those that begin with it.
    request = {"logGroupName": GROUP, "logStreamNamePrefix": f"{name}/", "limit": _MOST_STREAMS}
    answer = await api.call(region, "logs", "describe_log_streams", request, expected=_is_missing) or {}
    streams = [stream for stream in answer.get("logStreams") or [] if stream.get("logStreamName")]
    if not streams:
        return None
    return str(max(streams, key=lambda stream: stream.get("creationTime") or 0)["logStreamName"])


def _events_of(stream: str, **how: Any) -> dict[str, Any]:
    return {"logGroupName": GROUP, "logStreamName": stream, **how}


def _lines_of(stream: str, answer: dict[str, Any]) -> list[ContainerLine]:
    container = stream.rpartition("/")[2][:100]
    events = answer.get("events") or []
    return [ContainerLine(container, str(event.get("message") or ""), at=_time_of(event)) for event in events]


def _time_of(event: dict[str, Any]) -> datetime | None:
    milliseconds = event.get("timestamp")
    if not isinstance(milliseconds, int) or not 0 < milliseconds < 4_102_444_800_000:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _is_missing(code: str, _text: str) -> bool:
    return code == "ResourceNotFoundException"
