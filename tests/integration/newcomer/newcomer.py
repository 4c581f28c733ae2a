"""Somebody who has a project, an account and the quick start, and types its commands."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from sandbox.processes import own_environment
from tests.processes.waiting import PATIENCE_SECONDS, awaited, until

_RUN = "lora-worker run"
_PROMPT = re.compile(r"(\]|\)|[A-Za-z]\??): $")
"""How a question ends: `… [default]: ` or `… (meaning): ` or `Go on? [y/N]: `."""


class Newcomer:
    """A folder with a `.env`, and the commands that are typed there."""

    def __init__(self, folder: Path, variables: Mapping[str, str], sandbox: Mapping[str, str]) -> None:
        """`variables` go into `.env`; `sandbox` is what only a sandbox needs: addresses, and a faster pace."""
        self.folder = folder
        self._environment = {
            **own_environment(),
            **sandbox,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        self.env_file = folder / ".env"
        if variables:
            self.env_file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        self._worker: subprocess.Popen[bytes] | None = None
        self._worker_log = folder / "worker.log"

    def type(self, command: str, **placeholders: str) -> str:
        """Run a command of the page and return what it prints; its words in capitals may be placeholders.

        A worker is started in the background, as in a terminal of its own.
        """
        if command == _RUN:
            self._start_worker()
            return ""
        words = [placeholders.get(word, word) for word in shlex.split(command)]
        done = subprocess.run(
            words, cwd=self.folder, env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.log()}"
        return done.stdout

    def type_and_answer(self, command: str, answers: Mapping[str, str]) -> str:
        """Run a command at a terminal, answer its questions, and return what is on the screen in the end.

        Each question is found by a part of its text; one that is not among `answers` is answered with Enter.
        """
        screen, answered, (master, slave) = "", 0, pty.openpty()
        process = subprocess.Popen(
            shlex.split(command),
            cwd=self.folder,
            env=self._environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            # Without a terminal of its own, or it would ask for passwords at that of whoever runs the tests.
            start_new_session=True,
        )
        os.close(slave)
        deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            while (shown := _read(master, deadline)) is not None:
                screen += shown
                question = screen[answered:].rpartition("\n")[2]
                if _PROMPT.search(question):
                    answer = next((text for part, text in answers.items() if part in question), "")
                    os.write(master, f"{answer}\n".encode())
                    answered = len(screen)
            code = awaited(process.poll, "the command ends", state=lambda: screen)
        finally:
            process.kill()
            process.wait()
            os.close(master)
        assert code == 0, f"{command}: exit {code}\n{screen}"
        return screen

    def _start_worker(self) -> None:
        with self._worker_log.open("ab") as log:
            self._worker = subprocess.Popen(
                shlex.split(_RUN), cwd=self.folder, env=self._environment, stdout=log, stderr=log
            )
        until(lambda: "started" in self.log() or not self._runs(), "the worker has started", state=self.log)
        assert self._runs(), self.log()

    def stop_worker(self) -> int | None:
        """Press Ctrl-C in the worker's terminal; returns its exit code, None if there is no worker."""
        worker, self._worker = self._worker, None
        if worker is None:
            return None
        worker.send_signal(signal.SIGINT)
        return awaited(worker.poll, "the worker ends", state=self.log)

    def log(self) -> str:
        """What the worker has printed."""
        return self._worker_log.read_text() if self._worker_log.exists() else ""

    def _runs(self) -> bool:
        return self._worker is not None and self._worker.poll() is None


def _read(terminal: int, deadline: float) -> str | None:
    """Return what has appeared; None when the program has ended.

    Raises:
        TimeoutError: nothing appeared until the deadline.
    """
    if not select.select([terminal], [], [], max(deadline - time.monotonic(), 0))[0]:
        raise TimeoutError("the command neither went on nor asked")
    try:
        return os.read(terminal, 65536).decode(errors="replace") or None
    except OSError:  # Linux reports so that no process has the terminal any more
        return None
