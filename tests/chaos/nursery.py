"""`lora-worker` processes that start in a twentieth of a second, forked from one that has everything loaded.

The chaos suite starts five hundred, and loading the libraries takes each most of a second. Modules that read crash
points from the environment at import are imported after the fork.

Run as `python -m tests.chaos.nursery`: one order per line on standard input, one answer per line on standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests.processes.waiting import PATIENCE_SECONDS
from tests.processes.warm_python import KINDS

_POLL_SECONDS = 0.02


class Nursery:
    """The process that forks the workers. `close` ends it and all of them."""

    def __init__(self, root: Path) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.nursery"],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start(self, module: str, *, log: Path, env: Mapping[str, str], cwd: Path) -> Hatchling:
        """Run `module` as the program `lora-worker run`, with exactly that environment."""
        pid = self.ask(module=module, log=str(log), env=dict(env), cwd=str(cwd))
        return Hatchling(self, pid, log)

    def ask(self, **order: Any) -> Any:
        """Send an order; returns its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """SIGKILL to everything."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # Leaving the context closes the pipes and waits.
        with self._process:
            pass


@dataclass
class Hatchling:
    """A process that a nursery forked. The system does not reuse its id until its end was read here."""

    nursery: Nursery
    pid: int
    log: Path
    _status: int | None = None

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self._status is None:
            self._status = self.nursery.ask(poll=self.pid)
        return self._status

    def send(self, number: int) -> None:
        """Send a signal; does nothing if the process has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def stop(self, number: int = signal.SIGTERM, *, patience_seconds: float = PATIENCE_SECONDS) -> int:
        """SIGTERM, and SIGKILL if it does not end in time; returns the exit status."""
        self.send(number)
        deadline = time.monotonic() + patience_seconds
        while self.returncode is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        self.send(signal.SIGKILL)
        while (status := self.returncode) is None:
            time.sleep(_POLL_SECONDS)
        return status

    def kill(self) -> int:
        """SIGKILL; its exit status."""
        return self.stop(signal.SIGKILL)


def _hatch(order: dict[str, Any]) -> NoReturn:
    """Become the worker that was ordered."""
    null, log = os.open(os.devnull, os.O_RDONLY), os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    sys.argv = ["lora-worker", "run"]
    status = 1
    try:
        runpy.run_module(order["module"], run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        # The exit below shows nobody what was raised.
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _poll(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def main() -> None:
    """Carry out orders until there are no more."""
    for name in KINDS["worker"].libraries:
        __import__(name)
    assert "lora_contract.crash_points" not in sys.modules, "a crash point would never be armed"
    for line in sys.stdin:
        order = json.loads(line)
        if "poll" in order:
            answer = _poll(order["poll"])
        elif (answer := os.fork()) == 0:
            _hatch(order)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    # The process that gave orders has ended, so nobody would stop the workers.
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
