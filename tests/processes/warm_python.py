"""Python processes that have torch and its company loaded: forked from one that waits, in a tenth of a second.

Each training process of the tests would load them for seven seconds of a core, and the tests start some fifty. What
forks has loaded libraries only: the project's own modules, which read the environment, are imported after the fork, as
in a new process.

Run as `python -m tests.processes.warm_python SOCKET`: one order a message, with the file descriptors of the process.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, Any

from tests.project import ROOT

_LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "bitsandbytes",
    "accelerate",
    "trl.trainer.sft_trainer",
)
_FIXED = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
"""What the libraries read when they are loaded; a process that wants it otherwise has to be a new one."""
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
    """The process that forks the others; it ends with this one."""

    def __init__(self) -> None:
        self._own, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with others:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.processes.warm_python", str(others.fileno())],
                pass_fds=(others.fileno(),),
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env={**os.environ, **_FIXED},
            )

    def start(self, module: str, message_pipe: int, environment: Mapping[str, str]) -> WarmProcess:
        """Run a module as `python -m` would, with the number of its copy of `message_pipe` as its only argument.

        Its environment is this process's with the given variables; its output is this process's.
        """
        stdin_read, stdin_write = os.pipe()
        env = {**os.environ, **_FIXED, **environment}
        order = json.dumps({"module": module, "env": env, "cwd": os.getcwd()}).encode()  # noqa: PTH109
        _adopt_orphans(wanted=True)
        try:
            socket.send_fds(self._own, [order], [stdin_read, 1, 2, message_pipe])
            pid = int(self._own.recv(100))
        finally:
            _adopt_orphans(wanted=False)
            os.close(stdin_read)
        return WarmProcess(pid, os.fdopen(stdin_write, "wb"))

    def close(self) -> None:
        """End the process that forks."""
        self._own.close()
        self._process.wait()


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
    *standard, pipe = fds
    for number, fd in enumerate(standard):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    sys.argv = [order["module"], str(pipe)]
    return str(order["module"])


def main() -> None:
    """Load the libraries, and fork until whoever started this has gone."""
    for library in _LIBRARIES:
        __import__(library)
    with socket.socket(fileno=int(sys.argv[1])) as orders:
        module = _serve(orders)
    if module is not None:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
