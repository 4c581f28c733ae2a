"""Child processes with a pipe for messages, as the trainer's handler and the GPU server start them."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")


@asynccontextmanager
async def reading(read_end: int, *, most_bytes: int) -> AsyncIterator[asyncio.StreamReader]:
    """Open the read end of a pipe, with lines of at most so many bytes; it is closed when the context ends."""
    reader = asyncio.StreamReader(limit=most_bytes)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
    )
    try:
        yield reader
    finally:
        transport.close()


async def finish(work: asyncio.Task[T] | Coroutine[Any, Any, T]) -> T | None:
    """Wait until `work` has ended, even if the waiting task is cancelled. None if `work` itself was cancelled.

    A stop signal may come twice. Without this, the second one would interrupt the wait and leave a child behind.
    """
    task = work if isinstance(work, asyncio.Task) else asyncio.create_task(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    return None if task.cancelled() else task.result()


async def send_line(process: Process, line: str) -> None:
    """Write a line to the standard input of a process, which stays open: its end would tell that this process died."""
    assert process.stdin is not None
    process.stdin.write(line.encode() + b"\n")
    with suppress(ConnectionError):  # the child has died already; its exit status says how
        await process.stdin.drain()


async def stop(process: Process, *, grace_seconds: float, kill_seconds: float) -> bool:
    """End a process and its group: SIGTERM, and after `grace_seconds` SIGKILL; with 0 at once.

    False if it does not end even then, within `kill_seconds`: it hangs in a driver, where no signal reaches it.
    """
    if grace_seconds > 0 and process.returncode is None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await process.wait()
    kill_group(process.pid)
    try:
        async with asyncio.timeout(kill_seconds):
            await process.wait()
    except TimeoutError:
        return False
    return True


def kill_group(pid: int) -> None:
    """Send SIGKILL to the process group that this process leads, if it is still there."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def ending_of(status: int) -> str:
    """How a process ended, in words: its exit code, or the signal that ended it."""
    return f"exit code {status}" if status >= 0 else signal.Signals(-status).name
