"""Runs one job's trainer in a process of its own, and ends it with all that it has started.

The process reads its job, a line of JSON, from standard input, and writes messages, one a line, to the file descriptor
whose number is its last argument: {"progress": …} and at its end {"result": …}. This server holds its standard input
open as long as it lives; when the server is killed, the process reads the end of its input and kills itself, so that no
GPU works for a job that nobody watches. What it prints goes into a file, of which the newest part is kept.
"""

from __future__ import annotations

import asyncio
import json
import os
from asyncio.subprocess import Process
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_contract.child_processes import finish, kill_group, reading, send_line, stop
from lora_worker.launchers.base import EndCause

MAX_MESSAGE_BYTES = 10_000_000
"""The largest message that is read of a trainer: the worker reads no larger answer."""
MAX_LOG_BYTES = 2_000_000
"""Of what a trainer prints the newest bytes are kept, between half of these and all of them."""
_CHUNK_BYTES = 1 << 16
_KILL_SECONDS = 10.0
_OUTPUT_SECONDS = 5.0
_IMPORT_ERRORS = (b"ModuleNotFoundError:", b"ImportError:")


@dataclass(frozen=True, slots=True)
class ProcessEnding:
    """How a trainer's process ended: `result` is what it said at its end; None where it said nothing."""

    status: int
    result: dict[str, Any] | None
    is_broken: bool = False
    """Whether it could not even be imported."""


def trainer_environment(own: Mapping[str, str], gpu: str | None, *, hidden: Collection[str]) -> dict[str, str]:
    """The environment of a trainer on this GPU (None: on the CPU, with no GPU in sight), less the `hidden` ones."""
    kept = {name: value for name, value in own.items() if name not in hidden}
    return {**kept, "CUDA_VISIBLE_DEVICES": gpu or ""}


class TrainerProcess:
    """One job's process. When `run` is cancelled, the process gets `grace_seconds` to save a checkpoint, and ends."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        grace_seconds: float,
        on_progress: Callable[[Any], None],
    ) -> None:
        self._command = command
        self._env = env
        self._log = log
        self._grace_seconds = grace_seconds
        self._on_progress = on_progress
        self._result: dict[str, Any] | None = None

    async def run(self, job: Mapping[str, Any]) -> ProcessEnding:
        """Run the process to its end.

        Raises:
            OSError: it can't be started.
        """
        messages, output = os.pipe(), os.pipe()
        try:
            process = await self._spawn(messages[1], output[1])
        except BaseException:
            os.close(messages[0])
            os.close(output[0])
            raise
        following = asyncio.create_task(self._follow_messages(messages[0]))
        keeping = asyncio.create_task(self._keep_output(output[0]))
        try:
            await send_line(process, json.dumps(job))
            await process.wait()
        except asyncio.CancelledError:
            await finish(stop(process, grace_seconds=self._grace_seconds, kill_seconds=_KILL_SECONDS))
            raise
        finally:
            kill_group(process.pid)
            # A process that it has left behind outside its group would hold the pipes open for ever.
            _, left = await asyncio.wait({following, keeping}, timeout=_OUTPUT_SECONDS)
            for task in left:
                task.cancel()
            await asyncio.gather(following, keeping, return_exceptions=True)
        assert process.returncode is not None
        return ProcessEnding(process.returncode, self._result, is_broken=self._could_not_import())

    async def _spawn(self, messages: int, output: int) -> Process:
        try:
            return await asyncio.create_subprocess_exec(
                *self._command,
                str(messages),
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(messages,),
                env=dict(self._env),
                start_new_session=True,
            )
        finally:
            os.close(messages)
            os.close(output)

    async def _follow_messages(self, read_end: int) -> None:
        async with reading(read_end, most_bytes=MAX_MESSAGE_BYTES) as reader:
            with suppress(ValueError):  # a line without an end: nothing after it is read
                while line := await reader.readline():
                    self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return  # the last line may be cut off when the process dies
        if isinstance(message, dict) and isinstance(message.get("result"), dict):
            self._result = message["result"]
        elif isinstance(message, dict) and "progress" in message:
            self._on_progress(message["progress"])

    async def _keep_output(self, read_end: int) -> None:
        async with reading(read_end, most_bytes=_CHUNK_BYTES) as reader:
            while chunk := await reader.read(_CHUNK_BYTES):
                # On a full disk the log is cut, and the pipe is read on: a trainer that prints into a closed one dies.
                with suppress(OSError):
                    self._append(chunk)

    def _append(self, chunk: bytes) -> None:
        with self._log.open("ab") as file:
            if file.tell() + len(chunk) > MAX_LOG_BYTES:
                kept = self._log.read_bytes()[-MAX_LOG_BYTES // 2 :]
                file.truncate(0)
                file.write(kept)
            file.write(chunk)

    def _could_not_import(self) -> bool:
        """Whether the last thing that it printed is Python's word for a module that is not there."""
        try:
            lines = self._log.read_bytes()[-4096:].strip().splitlines()
        except OSError:
            return False
        return self._result is None and bool(lines) and lines[-1].startswith(_IMPORT_ERRORS)


def cause_of(ending: ProcessEnding) -> EndCause:
    """What a process that left no result died of."""
    return EndCause.IMPORT_FAILED if ending.is_broken else EndCause.RAISED
