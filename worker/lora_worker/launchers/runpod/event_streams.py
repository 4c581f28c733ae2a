"""Reads an event stream (SSE), such as that of a worker's log. It comes from a container: its size is bounded."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
from pydantic import ValidationError

from lora_worker.launchers.runpod.resources import LogLine

_MAX_EVENT_CHARACTERS = 200_000
_MAX_STREAM_CHARACTERS = 50_000_000


async def read_log_lines(response: httpx.Response, *, most_lines: int) -> AsyncIterator[LogLine]:
    """Yield the log lines of an event stream, until it ends or `most_lines` were read.

    An event that is no log line is left out, also one that is too long.
    """
    lines = 0
    async for data in _events(response):
        line = _log_line(data)
        if line is None:
            continue
        yield line
        lines += 1
        if lines >= most_lines:
            return


def _log_line(data: str) -> LogLine | None:
    try:
        return LogLine.model_validate(json.loads(data))
    except (ValueError, ValidationError, RecursionError):
        return None


async def read_lines(response: httpx.Response) -> AsyncIterator[str]:
    """Yield each whole line of a stream. httpx's own lines have no bound; these are cut, and the stream has an end."""
    pending, read = "", 0
    async for text in response.aiter_text():
        read += len(text)
        if read > _MAX_STREAM_CHARACTERS:
            return
        *whole, pending = (pending + text).split("\n")
        # The rest of a line that is too long is no JSON any more, and so is left out.
        pending = pending[:_MAX_EVENT_CHARACTERS]
        for line in whole:
            yield line


async def _events(response: httpx.Response) -> AsyncIterator[str]:
    """Yield the data of each event, which RunPod writes on one line."""
    async for line in read_lines(response):
        if line.startswith("data:"):
            yield line.removeprefix("data:").strip()
