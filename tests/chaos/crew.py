"""Worker processes as an operator has them: `lora-worker run`, started, stopped, paused and killed by pid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.nursery import Hatchling, Nursery
from tests.processes.waiting import until
from tests.project import ROOT

MODULE = "lora_worker.commands.cli"
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


@dataclass
class Worker:
    """One worker process. Leases and logs call it by its `name` and a random end."""

    name: str
    child: Hatchling

    def is_called(self, name: str) -> bool:
        """Whether a lease names this worker."""
        return name.rpartition("-")[0] == self.name

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self.child.returncode is None

    @property
    def has_started(self) -> bool:
        """Whether it has logged that it is working."""
        log = self.child.log
        return log.exists() and '"worker started"' in log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL: nothing is finished, nothing is released."""
        self.child.kill()

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        self.child.send(signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM, and wait for the end; returns the exit status."""
        return self.child.stop()

    def pause(self) -> None:
        """SIGSTOP."""
        self.child.send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.child.send(signal.SIGCONT)

    @property
    def is_paused(self) -> bool:
        """Whether a SIGSTOP has taken effect."""
        try:
            state = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            # Without /proc, `ps` gives the same answer, more slowly.
            asked = subprocess.run(["ps", "-o", "state=", "-p", str(self.child.pid)], capture_output=True, text=True)
            state = asked.stdout.strip()
        return state.startswith("T")

    def log_lines(self) -> Iterator[dict[str, Any]]:
        """What it has logged so far."""
        log = self.child.log
        for line in log.read_text(errors="replace").splitlines() if log.exists() else ():
            if line.startswith("{"):
                yield json.loads(line)


class Crew:
    """Starts workers that share settings; `close` ends the remaining ones. `module` is what each runs."""

    def __init__(self, folder: Path, env: Mapping[str, str], module: str = MODULE) -> None:
        self._folder, self._module = folder, module
        self._nursery = Nursery(ROOT)
        self._env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | dict(env)
        self._count = 0
        self.workers: list[Worker] = []

    def start(self, env: Mapping[str, str] | None = None, module: str | None = None) -> Worker:
        """Start one more worker, with `env` besides; `module`: another one than the crew's."""
        self._count += 1
        name = f"worker-{self._count}"
        child = self._nursery.start(
            module or self._module,
            log=self._folder / f"{name}.log",
            # In the project's folder they would read the developer's `.env`.
            cwd=self._folder,
            env={**self._env, "LORA_WORKER_NAME": name, **(env or {})},
        )
        worker = Worker(name, child)
        self.workers = [other for other in self.workers if other.is_alive] + [worker]
        return worker

    def kill(self) -> None:
        """SIGKILL to all of them."""
        for worker in self.workers:
            worker.kill()
        self.workers.clear()

    def stop(self) -> None:
        """SIGTERM to all of them, and wait."""
        for worker in self.workers:
            worker.child.send(signal.SIGTERM)
        for worker in self.workers:
            worker.stop()
        self.workers.clear()

    def replace(self, env: Mapping[str, str], module: str | None = None, *, count: int = 2) -> None:
        """Kill all workers and start so many new ones with `env` added."""
        self.kill()
        for _ in range(count):
            self.start(env, module)
        self.await_start()

    def close(self) -> None:
        """End every process, the nursery too."""
        self._nursery.close()

    def keep(self, count: int) -> None:
        """Have exactly so many workers: start missing ones, resume paused ones, stop surplus ones."""
        alive = [worker for worker in self.workers if worker.is_alive]
        for worker in alive:
            worker.resume()
        for worker in alive[count:]:
            worker.stop()
        self.workers = alive[:count]
        while len(self.workers) < count:
            self.start()

    def await_start(self, workers: Sequence[Worker] | None = None) -> None:
        """Wait until the workers (by default all) have logged that they are working, or have ended."""
        for worker in self.workers if workers is None else workers:
            until(
                lambda worker=worker: worker.has_started or not worker.is_alive,
                f"{worker.name} starts; see {worker.child.log}",
            )
