"""Tells systemd that the worker lives: one that gives no sign is restarted (packaging/lora-worker.service).

The protocol is that of sd_notify(3): datagrams to the Unix socket that the variable NOTIFY_SOCKET names.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

_MICROSECONDS = 1e6


@asynccontextmanager
async def reporting_to_systemd(
    problem: Callable[[], str | None], environment: Mapping[str, str] = os.environ
) -> AsyncIterator[None]:
    """While the context is open, give systemd a sign of life twice in the time that it waits for one.

    None is given while `problem` returns something, nor by an event loop that hangs. Does nothing outside of systemd.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        yield
        return
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as channel:
        # The notices must never hold up the event loop.
        channel.setblocking(False)
        target = f"\0{address[1:]}" if address.startswith("@") else address
        _send(channel, target, "READY=1")
        seconds = _watchdog_seconds(environment)
        living = asyncio.create_task(_live(channel, target, problem, seconds / 2), name="watchdog") if seconds else None
        try:
            yield
        finally:
            if living is not None:
                living.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await living
            _send(channel, target, "STOPPING=1")


async def _live(channel: socket.socket, target: str, problem: Callable[[], str | None], seconds: float) -> None:
    while True:
        if problem() is None:
            _send(channel, target, "WATCHDOG=1")
        await asyncio.sleep(seconds)


def _send(channel: socket.socket, target: str, text: str) -> None:
    # If systemd does not read, the next sign may still come in time.
    with contextlib.suppress(OSError):
        channel.sendto(text.encode(), target)


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """How long systemd waits for a sign of this process; None where it waits for none."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        seconds = int(environment["WATCHDOG_USEC"]) / _MICROSECONDS
    except (KeyError, ValueError):
        return None
    return seconds if seconds > 0 else None
