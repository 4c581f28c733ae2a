"""Lines of RunPod's log streams as lines of a container. A container that RunPod does not know any more has none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime
from typing import TypedDict

from lora_worker.errors import ServiceRefusedError
from lora_worker.launchers.base import ContainerLine
from lora_worker.launchers.runpod.resources import LogLine

FOLLOW_SECONDS = 10.0
"""After so long without a line a stream that is followed ends, and may be read again."""
_IDLE_SECONDS = 5.0
"""RunPod's stream has no end: after so long without a line, all lines of the past have come."""
_TAIL_SECONDS = 12.0
"""Who asks gives up after twenty seconds, with all that was read."""


class Tail(TypedDict):
    """Which part of a log is its end."""

    tail: int
    idle_seconds: float
    most_lines: int


def tail_of(most_lines: int) -> Tail:
    """The arguments with which the last lines of a log are asked for."""
    return Tail(tail=most_lines, idle_seconds=_IDLE_SECONDS, most_lines=most_lines)


async def read_tail(container: str, lines: AsyncIterator[LogLine]) -> list[ContainerLine]:
    """The lines that a log has by now.

    Raises:
        ServiceError: they can't be read; the text says why.
    """
    found: list[ContainerLine] = []
    # A container that goes on printing is never silent: what has come by then is better than nothing.
    with suppress(TimeoutError):
        async with asyncio.timeout(_TAIL_SECONDS):
            async for line in read_lines(container, lines):
                found.append(line)
    return found


async def read_lines(container: str, lines: AsyncIterator[LogLine]) -> AsyncIterator[ContainerLine]:
    """The lines of a log as they come.

    Raises:
        ServiceError: they can't be read; the text says why.
    """
    try:
        async for line in lines:
            yield _line_of(container, line)
    except ServiceRefusedError as error:
        if error.status != 404:
            raise


def _line_of(container: str, line: LogLine) -> ContainerLine:
    try:
        at = datetime.fromisoformat(line.ts) if line.ts else None
    except ValueError:
        at = None
    # A time without a zone can't be compared with others.
    at = at if at is not None and at.tzinfo is not None else None
    return ContainerLine(container, line.line, is_launchers=line.source == "system", at=at)
