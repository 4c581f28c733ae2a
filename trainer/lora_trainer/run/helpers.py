"""The processes that help the training process, one for each further GPU.

They run the same recipe (`python -m lora_trainer.recipe.train --helper …`) in the process group of the training
process, the leader: whoever kills its group kills them, and each watches its standard input, which ends when the leader
dies. They write no checkpoint, no artifact, no progress and no outcome: how one ended is said by its exit status.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Protocol

from lora_contract.child_processes import ending_of

log = logging.getLogger(__name__)

HELPER = "--helper"
"""The first argument of a helper. Its rank, the number of processes and the file of their store follow."""
_PATIENCE_SECONDS = 60.0
"""How long the leader may take to end by itself once a helper has died: it may be saving a checkpoint. Beyond that it
waits for the dead in a call of NCCL, which nothing else ends."""
_ENDING_SECONDS = 5.0


class HelperEnding(IntEnum):
    """The exit status of a helper."""

    DONE = 0
    FAILED = 1
    OUT_OF_MEMORY = 3
    NOT_COMPILED = 4


class HelperProcess(Protocol):
    """What is used of `subprocess.Popen`."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; returns its exit status, negative for a signal."""

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""

    def kill(self) -> None:
        """Send SIGKILL."""


def spawn(arguments: Sequence[str], task: str, gpu: str | None) -> HelperProcess:
    """Start one helper, which sees only the GPU with this name, and give it the task, a line of JSON."""
    process = subprocess.Popen(  # noqa: S603 our own module
        [sys.executable, "-u", "-X", "faulthandler", "-m", "lora_trainer.recipe.train", *arguments],
        stdin=subprocess.PIPE,
        env=helper_environment(os.environ, gpu),
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has died already; its exit status says how
        process.stdin.write(task.encode() + b"\n")
        process.stdin.flush()
    return process


def helper_environment(environment: Mapping[str, str], gpu: str | None) -> dict[str, str]:
    """The variables of a helper: those of the leader, but for the GPU that it sees."""
    return dict(environment) if gpu is None else {**environment, "CUDA_VISIBLE_DEVICES": gpu}


class Helpers:
    """The helpers of one training. `on_lost` is called with the ending of one that died, if the leader hangs then."""

    def __init__(
        self,
        gpus: Sequence[str | None],
        task: str,
        on_lost: Callable[[int], object],
        *,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        """Start one helper for each of `gpus` but the first, which is the leader's own."""
        self._folder = tempfile.TemporaryDirectory(prefix="lora-ranks-")
        self.store = Path(self._folder.name) / "store"
        """The file through which the processes find each other."""
        self._on_lost = on_lost
        self._patience_seconds = patience_seconds
        self._released = threading.Event()
        self._lost = threading.Event()
        self._endings: dict[int, int] = {}
        self._processes = {
            rank: spawn([HELPER, str(rank), str(len(gpus)), str(self.store)], task, gpu)
            for rank, gpu in enumerate(gpus)
            if rank > 0
        }
        for rank, process in self._processes.items():
            threading.Thread(target=self._watch, args=(rank, process), name=f"helper-{rank}", daemon=True).start()

    def failure(self) -> int | None:
        """The exit status of a helper that has failed, waiting a moment for one that is about to end; else None."""
        self._lost.wait(_ENDING_SECONDS)
        return next((status for status in self._endings.values() if status != HelperEnding.DONE), None)

    def release(self) -> None:
        """From now on a helper's death ends nothing: the steps are done."""
        self._released.set()

    def close(self) -> None:
        """Kill all helpers, and wait for their end. To be called before the leader ends."""
        self._released.set()
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):  # it hangs in a driver, where no signal reaches it
                process.wait(_ENDING_SECONDS)
        self._folder.cleanup()

    def _watch(self, rank: int, process: HelperProcess) -> None:
        status = process.wait()
        if self._released.is_set():
            return
        log.log(logging.INFO if status == 0 else logging.WARNING, "process %d ended with %s", rank, ending_of(status))
        self._endings[rank] = status
        if status == HelperEnding.DONE:
            return
        self._lost.set()
        if not self._released.wait(self._patience_seconds):
            self._on_lost(status)
