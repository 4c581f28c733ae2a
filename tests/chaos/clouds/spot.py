"""Clouds that rent out machines: some have none at times, and take some away before their job is done."""

from __future__ import annotations

import json
import os
import random
import signal
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from sandbox.runpod import Execution, Launch
from tests.chaos.clouds.base import MachineCloud
from tests.chaos.clouds.faulty_proxy import FaultyProxy


class SpotCloud(MachineCloud):
    """A cloud that gives each job a spot machine, and lists the jobs of the account: a stand-in behind a proxy."""

    no_machine: ClassVar[str]
    """The stand-in's fault by which a job finds no machine."""
    send_signal: ClassVar[Callable[[int, int], None]] = staticmethod(os.killpg)
    """Sends a signal to a job's process; most stand-ins give each job a group of processes."""
    server: Any
    """The stand-in: `jobs`, `living()`, `working()`, `faults` and `lists_lag_seconds`."""
    _proxy: FaultyProxy

    @abstractmethod
    def launch_of(self, job: Any) -> Launch:
        """The launch that one of the stand-in's jobs is."""

    @abstractmethod
    def log_of(self, job: Any) -> tuple[dict[str, Any], Sequence[Path]]:
        """What the stand-in knows of a job, and the files of what its containers printed."""

    @abstractmethod
    def take_away(self, job: Any) -> None:
        """Take the machine of a job away, as the cloud does."""

    def launches(self) -> Sequence[Launch]:
        return [self.launch_of(job) for job in list(self.server.jobs.values())]

    def orphans(self) -> Sequence[Execution]:
        living = map(self.launch_of, self.server.living())
        return [Execution(launch.job_id, launch.run_id, "", launch.at) for launch in living]

    def outage(self) -> AbstractContextManager[None]:
        return self._proxy.outage()

    def keep_logs(self, folder: Path) -> None:
        (folder / "ledger.json").write_text(json.dumps([asdict(launch) for launch in self.launches()], indent=1))
        for job in list(self.server.jobs.values()):
            told, files = self.log_of(job)
            printed = [path.read_text(errors="replace") for path in files if path.exists()]
            (folder / f"{self.launch_of(job).job_id}.log").write_text("\n".join([json.dumps(told), *printed]))

    def kill_one(self, rng: random.Random) -> None:
        if (job := self._one(rng)) is not None and job.process is not None:
            with suppress(ProcessLookupError):
                self.send_signal(job.process.pid, signal.SIGKILL)

    def take_one_away(self, rng: random.Random) -> None:
        """Take the machine of a job that is drawn by lot away; does nothing where none trains."""
        if (job := self._one(rng)) is not None:
            self.take_away(job)

    def have_no_machine(self, times: int) -> None:
        """Accept so many submissions to come, and then find no machine for them."""
        self.server.faults += [self.no_machine] * times

    @contextmanager
    def late_lists(self, seconds: float) -> Iterator[None]:
        """While the context is open, no list shows jobs yet that are younger than `seconds`."""
        self.server.lists_lag_seconds = seconds
        try:
            yield
        finally:
            self.server.lists_lag_seconds = 0.0

    def _one(self, rng: random.Random) -> Any:
        working = self.server.working()
        return rng.choice(working) if working else None
