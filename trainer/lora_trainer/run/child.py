"""Run the training in a process of its own and end it in every case.

A crash of CUDA, a segmentation fault or the kernel's memory killer takes the child only; the handler
keeps its loop, says what happened, and goes on answering RunPod. The child's standard input stays
open as long as the handler lives: when the handler is killed, the child reads its end and ends too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import ValidationError

from lora_contract.protocol import Progress
from lora_trainer.errors import ChildCrashedError
from lora_trainer.run.task import OUTCOME_NAME, Outcome, Task

log = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_EVENT_BYTES = 4 << 20


class TrainingChild:
    """One child process for one task. Cancelling `run` stops the child before it returns."""

    def __init__(self, module: str, *, grace_seconds: float, on_progress: Callable[[Progress], None]) -> None:
        self._module = module
        self._grace_seconds = grace_seconds
        self._on_progress = on_progress
        self.save_on_stop = True
        """Whether a stopped child may take `grace_seconds` to save a checkpoint."""

    async def run(self, task: Task) -> Outcome:
        """Train; what the child left as its outcome.

        Raises:
            ChildCrashedError: the child died, or ended without an outcome.
        """
        (task.folder / OUTCOME_NAME).unlink(missing_ok=True)
        read_end, write_end = os.pipe()
        process = await self._spawn(write_end)
        events = asyncio.create_task(self._follow(read_end))
        try:
            await _hand_over(process, task)
            status = await process.wait()
        except asyncio.CancelledError:
            await finish(self._stop(process))
            raise
        finally:
            _kill_group(process.pid)  # data loaders that outlived the child, too
            await finish(events)
        return _judge(status, Outcome.read(task.folder))

    async def _spawn(self, events: int) -> Process:
        try:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                *("-u", "-m", self._module, str(events)),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=(events,),
                start_new_session=True,
                # The child may run a model's own code: RunPod's keys stay out of its reach.
                env={name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")},
            )
        finally:
            os.close(events)

    async def _follow(self, read_end: int) -> None:
        reader = asyncio.StreamReader(limit=_MAX_EVENT_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
        )
        try:
            while line := await reader.readline():
                with suppress(ValidationError):  # a line cut off by the child's death
                    self._on_progress(Progress.model_validate_json(line))
        finally:
            transport.close()

    async def _stop(self, process: Process) -> None:
        if self.save_on_stop and process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._grace_seconds):
                    await process.wait()
        _kill_group(process.pid)
        await process.wait()


async def finish(work: asyncio.Task[T] | Coroutine[Any, Any, T]) -> T | None:
    """Await `work` to its end, whatever happens to the awaiting task; None when `work` was cancelled.

    RunPod may repeat a stop signal; a second one must not leave a child behind.
    """
    task = work if isinstance(work, asyncio.Task) else asyncio.create_task(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    return None if task.cancelled() else task.result()


async def _hand_over(process: Process, task: Task) -> None:
    assert process.stdin is not None
    process.stdin.write(task.model_dump_json().encode() + b"\n")
    with suppress(ConnectionError):  # it died already; its exit status says how
        await process.stdin.drain()


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _judge(status: int, outcome: Outcome | None) -> Outcome:
    if outcome is not None:
        if status != 0:
            log.warning("the training process left an outcome (%s) and ended with %s", outcome.status, status)
        return outcome
    if status == -signal.SIGKILL:
        raise ChildCrashedError(
            "The training process was killed (SIGKILL), probably because the machine's main memory ran out.",
            "The next attempt goes on from the last checkpoint; a worker type with more memory avoids it.",
        )
    if status < 0:
        raise ChildCrashedError(
            f"The training process crashed ({signal.Signals(-status).name}).",
            "The next attempt goes on from the last checkpoint; the container's log has the details.",
        )
    raise ChildCrashedError(
        f"The training process ended with exit code {status} without saying why.",
        "The container's log has the details.",
    )
