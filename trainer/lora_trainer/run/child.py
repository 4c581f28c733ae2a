"""Runs the training, and errands, in a child process, and ends that process in every case.

A crash of CUDA, a segmentation fault or the kernel's out-of-memory killer ends only the child. The handler goes on: it
reports what happened and keeps answering RunPod. The handler holds the child's standard input open as long as it
lives. When the handler is killed, the child reads the end of its input and kills itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from pydantic import ValidationError

from lora_contract.child_processes import ending_of, finish, kill_group, reading, send_line, stop
from lora_contract.log_lines import LineFilter
from lora_contract.protocol import Progress
from lora_trainer.errors import ChildCrashedError
from lora_trainer.run.task import OUTCOME_NAME, Outcome, Task

log = logging.getLogger(__name__)

_KILL_SECONDS = 10.0

T = TypeVar("T")

_MAX_LINE_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 16
_MAX_PRINTED_BYTES = 1 << 14
"""The most bytes that are kept of a line without an end; of one line that the child prints, far less is shown."""
_OUTPUT_SECONDS = 5
"""How long the handler waits for the end of the output when the child has ended: a process that it has left behind
outside its group would hold the pipe open for ever."""


class ChildProcess:
    """Runs one child process at a time. When `run` is cancelled, it stops the child before it returns.

    `module` is the name of the Python module that the child runs. It reads its task, a line of JSON, from standard
    input, and writes messages, one a line, to the file descriptor whose number is its only argument. `on_message` is
    called with each of them, and `on_line` with each line that the child prints, as far as it may be kept
    (`lora_contract.log_lines`).
    """

    def __init__(
        self,
        module: str,
        *,
        grace_seconds: float,
        on_message: Callable[[bytes], None],
        on_line: Callable[[str], None],
        secrets: tuple[str, ...] = (),
    ) -> None:
        self._module = module
        self._grace_seconds = grace_seconds
        self._on_message = on_message
        self._on_line = on_line
        self._secrets = secrets
        self.save_on_stop = True
        """Whether a stopped child may take `grace_seconds` to save a checkpoint."""

    async def run(self, task: str) -> int:
        """Run the module with a task. Returns its exit status, negative for a signal."""
        messages, output = os.pipe(), os.pipe()
        process = await self._spawn(messages[1], output[1])
        following = asyncio.create_task(self._follow_messages(messages[0]))
        listening = asyncio.create_task(self._follow_output(output[0]))
        try:
            await send_line(process, task)
            status = await process.wait()
        except asyncio.CancelledError:
            await finish(self._stop(process))
            raise
        finally:
            kill_group(process.pid)  # also ends data loaders that outlived the child
            await finish(following)
            await finish(_await_end(listening))
        return status

    async def _spawn(self, messages: int, output: int) -> Process:
        try:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                # After a crash inside a library, `faulthandler` prints which lines of Python had called it.
                *("-u", "-X", "faulthandler", "-m", self._module, str(messages)),
                stdin=asyncio.subprocess.PIPE,
                # Not a pipe of asyncio: with one, `wait` returns only when every process has closed it.
                stdout=output,
                stderr=output,
                pass_fds=(messages,),
                start_new_session=True,
                # The child may run code that a model brings, so it gets neither RunPod's keys nor those of a collector
                # of traces.
                env={name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "OTEL_"))},
            )
        finally:
            os.close(messages)
            os.close(output)

    async def _follow_messages(self, read_end: int) -> None:
        async with reading(read_end, most_bytes=_MAX_LINE_BYTES) as reader:
            while line := await reader.readline():
                with suppress(ValidationError):  # the last line may be cut off when the child dies
                    self._on_message(line)

    async def _follow_output(self, read_end: int) -> None:
        """Pass on what the child prints, line by line; a carriage return, as progress bars print, ends a line, too."""
        lines, rest = LineFilter(self._secrets), b""
        async with reading(read_end, most_bytes=_MAX_LINE_BYTES) as reader:
            while chunk := await reader.read(_CHUNK_BYTES):
                *whole, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
                # A longer line is cut: its beginning is shown, whatever follows.
                rest = rest[:_MAX_PRINTED_BYTES]
                for line in whole:
                    self._pass_on(lines.take(line[:_MAX_PRINTED_BYTES].decode(errors="replace")))
        self._pass_on([*lines.take(rest.decode(errors="replace")), *lines.end()])

    def _pass_on(self, lines: list[str]) -> None:
        for line in lines:
            self._on_line(line)

    async def _stop(self, process: Process) -> None:
        grace_seconds = self._grace_seconds if self.save_on_stop else 0
        if not await stop(process, grace_seconds=grace_seconds, kill_seconds=_KILL_SECONDS):
            log.error("the process %d does not end after SIGKILL", process.pid)


class TrainingChild(ChildProcess):
    """Runs the training process; `on_progress` is called with each progress that it reports."""

    def __init__(
        self,
        module: str,
        *,
        grace_seconds: float,
        on_progress: Callable[[Progress], None],
        on_line: Callable[[str], None],
        secrets: tuple[str, ...] = (),
    ) -> None:
        super().__init__(
            module,
            grace_seconds=grace_seconds,
            on_message=lambda line: on_progress(Progress.model_validate_json(line)),
            on_line=on_line,
            secrets=secrets,
        )

    async def train(self, task: Task) -> Outcome:
        """Train in a child process. Returns the outcome that the child wrote into `task.folder`.

        Raises:
            ChildCrashedError: the child ended without an outcome.
        """
        (task.folder / OUTCOME_NAME).unlink(missing_ok=True)
        status = await self.run(task.model_dump_json())
        return _check_exit(status, Outcome.read(task.folder))


async def _await_end(listening: asyncio.Task[None]) -> None:
    await asyncio.wait([listening], timeout=_OUTPUT_SECONDS)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


def _check_exit(status: int, outcome: Outcome | None) -> Outcome:
    """The outcome of a child that ended with this exit status, negative for a signal."""
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
            f"The training process crashed ({ending_of(status)}).",
            "The next attempt goes on from the last checkpoint.",
        )
    raise ChildCrashedError(f"The training process ended with {ending_of(status)} without saying why.")
