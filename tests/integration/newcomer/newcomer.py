"""Somebody who has a project, an account and the quick start, and types its commands."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.processes.waiting import awaited, until

_RUN = "lora-worker run"


class Newcomer:
    """A folder with a `.env`, and the commands that are typed there."""

    def __init__(self, folder: Path, variables: Mapping[str, str], sandbox: Mapping[str, str]) -> None:
        """`variables` go into `.env`; `sandbox` is what only a sandbox needs: addresses, and a faster pace."""
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LORA_", "SUPABASE_"))}
        self._environment = {
            **kept,
            **sandbox,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        self.env_file = folder / ".env"
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
