"""Python processes that have their libraries loaded: forked from one that waits, in a tenth of a second.

Each training process of the tests would load torch and its company for seven seconds of a core, and the tests start
some fifty; each of some three hundred `lora-worker` would load its own for most of a second. What forks has loaded
nothing that reads the variables of a process: such modules are imported after the fork, as in a new process.

Run as `python -m tests.processes.warm_python KIND SOCKET`. A message is an order, with the process's file descriptors.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from tests.project import ROOT


@dataclass(frozen=True)
class Kind:
    """What such a process has loaded, and what the libraries read of its variables when they are loaded."""

    libraries: tuple[str, ...]
    fixed: Mapping[str, str]
    """A process that wants one of these otherwise has to be a new one."""


KINDS = {
    "trainer": Kind(
        (
            "torch",
            "transformers",
            "peft",
            "trl",
            "datasets",
            "bitsandbytes",
            "accelerate",
            "trl.trainer.sft_trainer",
        ),
        {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    ),
    "worker": Kind(
        (
            "typer",
            "lora_worker.services",
            "lora_worker.observability.telemetry",
            "lora_worker.runs.rows.artifacts",
            "lora_worker.runs.rows.report_rows",
            "lora_worker.datasets.preflight",
        ),
        {},
    ),
}
_PR_SET_CHILD_SUBREAPER = 36
_MAX_ORDER_BYTES = 1 << 20


class WarmProcess:
    """A forked process, with what the tests use of `subprocess.Popen`. It is a child of this process."""

    def __init__(self, pid: int, stdin: IO[bytes]) -> None:
        self.pid, self.stdin = pid, stdin
        self.returncode: int | None = None

    def wait(self) -> int:
        """Wait until it has ended; returns its exit status, negative for a signal."""
        while self.returncode is None:
            self._take(os.waitpid(self.pid, 0))
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit status if it has ended."""
        if self.returncode is None:
            self._take(os.waitpid(self.pid, os.WNOHANG))
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _take(self, waited: tuple[int, int]) -> None:
        pid, status = waited
        if pid and not os.WIFSTOPPED(status):
            self.returncode = os.waitstatus_to_exitcode(status)


class WarmPython:
    """The process that forks the others of its kind; it ends with this one."""

    def __init__(self, kind: str) -> None:
        self._fixed = KINDS[kind].fixed
        self._own, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with others:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.processes.warm_python", kind, str(others.fileno())],
                pass_fds=(others.fileno(),),
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env={**os.environ, **self._fixed},
            )

    @classmethod
    @cache
    def of(cls, kind: str) -> WarmPython:
        """The one of this kind, which is started at the first call."""
        made = cls(kind)
        atexit.register(made.close)
        return made

    def start(
        self,
        module: str,
        *arguments: str,
        environment: Mapping[str, str],
        cwd: Path | None = None,
        output: Sequence[int] = (1, 2),
        message_pipe: int | None = None,
    ) -> WarmProcess:
        """Run a module as `python -m` would, with these arguments and exactly this environment.

        `output` are its standard output and error, by default this process's. The number of its copy of `message_pipe`
        becomes its last argument.
        """
        stdin_read, stdin_write = os.pipe()
        order = {
            "module": module,
            "arguments": arguments,
            "env": {**environment, **self._fixed},
            "cwd": str(cwd or Path.cwd()),
        }
        pipes = [] if message_pipe is None else [message_pipe]
        _adopt_orphans(wanted=True)
        try:
            socket.send_fds(self._own, [json.dumps(order).encode()], [stdin_read, *output, *pipes])
            pid = int(self._own.recv(100))
        finally:
            _adopt_orphans(wanted=False)
            os.close(stdin_read)
        return WarmProcess(pid, os.fdopen(stdin_write, "wb"))

    def close(self) -> None:
        """End the process that forks."""
        self._own.close()
        self._process.wait()


def run_module(
    kind: str, module: str, *arguments: str, environment: Mapping[str, str], cwd: Path, answer: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a module of this kind to its end, in a pipe; `answer` is its input."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = WarmPython.of(kind).start(
            module, *arguments, environment=environment, cwd=cwd, output=(output.fileno(), errors.fileno())
        )
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(answer.encode())
        code = process.wait()
        return subprocess.CompletedProcess(list(arguments), code, _text_of(output), _text_of(errors))


def run_command(
    *arguments: str, environment: Mapping[str, str], cwd: Path, answer: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `lora-worker` with these arguments to its end, as an operator does in a pipe; `answer` is its input."""
    return run_module("worker", "lora_worker.commands.cli", *arguments, environment=environment, cwd=cwd, answer=answer)


def _text_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def _adopt_orphans(*, wanted: bool) -> None:
    """Make this process the parent of what the forking one leaves behind, so that it can be waited for."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def _serve(orders: socket.socket) -> Any:
    """Fork a process for each order. Returns the module to run, in a process that was forked for it."""
    while True:
        order, fds, _, _ = socket.recv_fds(orders, _MAX_ORDER_BYTES, 4)
        if not order:
            return None
        told_read, told_write = os.pipe()
        between = os.fork()
        if between == 0:
            process = os.fork()
            if process == 0:
                orders.close()
                return _begin(json.loads(order), fds)
            os.write(told_write, str(process).encode())
            os._exit(0)
        # Its end makes the process an orphan, which whoever ordered it adopts. Only then is the number told: before,
        # it could not be waited for.
        os.waitpid(between, 0)
        orders.send(os.read(told_read, 100))
        for fd in (*fds, told_read, told_write):
            os.close(fd)


def _begin(order: dict[str, Any], fds: list[int]) -> str:
    os.setsid()
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    sys.argv = [order["module"], *order["arguments"], *map(str, fds[3:])]
    return str(order["module"])


def main() -> None:
    """Load the libraries, and fork until whoever started this has gone."""
    for library in KINDS[sys.argv[1]].libraries:
        __import__(library)
    assert "lora_contract.crash_points" not in sys.modules, "a crash point would never be armed"
    with socket.socket(fileno=int(sys.argv[2])) as orders:
        module = _serve(orders)
    if module is not None:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
