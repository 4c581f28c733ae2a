"""A launcher's other side: what it did, by its own records, and faults of its calls."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import ClassVar

from sandbox.runpod import Execution, Faults, Launch


class Cloud(ABC):
    """One launcher's other side: what a chaos run needs of it.

    A cloud can have each common fault (`tests/chaos/faults`), unless `spared` says why not. It names the calls of such
    a fault as RunPod does: `run` submits a job, `status` looks at one, `cancel` ends one, `health` asks whether the
    cloud can take jobs.
    """

    name: ClassVar[str]
    """The launcher's name in `lora_worker.launchers.registry`."""
    worker_module: ClassVar[str] = "lora_worker.commands.cli"
    """What a worker that launches here runs. Another one only sends calls to the stand-in that no setting sends."""
    calls: ClassVar[Mapping[str, str]] = {}
    """RunPod's names of calls, and under which others `faults` has them here."""
    spared: ClassVar[Mapping[str, str]] = {}
    """Common faults that can't happen here, by name, each with the reason."""
    faults: Faults
    """The armed faults of its calls."""

    @abstractmethod
    def __init__(self, stack: ExitStack, folder: Path, *, gpus: int, env: Mapping[str, str]) -> None:
        """Start it. `stack` ends it, `folder` is for its files, and each trainer has `env`. At most `gpus` jobs train
        at the same time."""

    @property
    @abstractmethod
    def environment(self) -> Mapping[str, str]:
        """The settings of a worker that launches here."""

    @abstractmethod
    def launches(self) -> Sequence[Launch]:
        """The launches that were accepted, by the cloud's own record."""

    @abstractmethod
    def orphans(self) -> Sequence[Execution]:
        """What costs money now or later: jobs that have not ended, by the cloud's own record."""

    @abstractmethod
    def outage(self) -> AbstractContextManager[None]:
        """Nobody answers while the context is open; what trains goes on."""

    @abstractmethod
    def keep_logs(self, folder: Path) -> None:
        """Write down what it did, for whoever looks for the reason of a broken promise."""

    @abstractmethod
    def warm_up(self) -> None:
        """Have everything started that would slow a fault down."""


class MachineCloud(Cloud):
    """A cloud where each job has a process, and perhaps a machine, of its own, which ends with the job."""

    @abstractmethod
    def kill_one(self, rng: random.Random) -> None:
        """SIGKILL to the trainer of a job that is drawn by lot; does nothing where none trains."""

    def warm_up(self) -> None:
        """Nothing is to start: each job has a process of its own."""
