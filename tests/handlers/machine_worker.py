"""`lora-worker` with one launcher more: a cloud in a folder, which starts a machine for each run.

A machine is a process that gets its request in its environment and has neither a queue nor an output. The folder holds
a folder for each, named after its run; the file `environment.json` in it holds the variables that each machine gets,
and while the file `stay` lies there, machines stay after their command has ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from pydantic import Field

from lora_contract.machine_request import LAUNCH_ID_VARIABLE, pack_request
from lora_worker.commands.cli import main
from lora_worker.configuration.settings import Settings
from lora_worker.errors import LaunchRefusedError
from lora_worker.launchers.base import (
    EndCause,
    EndpointHealth,
    Guide,
    LaunchRef,
    LaunchState,
    Observation,
    OwnedLaunch,
    Policy,
)
from lora_worker.launchers.marks import launch_name, run_of_name
from lora_worker.launchers.registry import LAUNCHERS, LauncherKind
from tests.project import ROOT

HOST = ROOT / "tests" / "handlers" / "machine_host.py"


class MachineSettings(Settings):
    """What this launcher needs."""

    machines_folder: Path = Field(description="The cloud")


class MachineLauncher:
    """Starts processes that outlive the worker."""

    name = "machines"
    endpoint = "machines://folder"
    guide = Guide("The folder", "the folder", "look into the folder", "look into the folder", "It is a folder.")
    longest_launch_seconds = 86_400.0
    takes_errands = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def reaches(self, endpoint: str) -> bool:
        return endpoint == self.endpoint

    async def launch(self, payload: dict[str, Any], policy: Policy) -> str:
        name = launch_name(payload["run_id"])
        try:
            variables = pack_request(payload)
        except ValueError as error:
            raise LaunchRefusedError("The folder", str(error), status=400) from None
        folder = self._folder / name
        try:
            folder.mkdir()
        except FileExistsError:
            return name  # it was accepted before
        given = json.loads((self._folder / "environment.json").read_text())
        self._start(folder, {**given, **variables, LAUNCH_ID_VARIABLE: name})
        return name

    def _start(self, folder: Path, variables: dict[str, str]) -> None:
        subprocess.Popen(
            [sys.executable, "-I", "-S", HOST, folder, sys.executable, "-u", "-m", "lora_trainer.machine"],
            env={"PATH": os.environ["PATH"], **variables},
            cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    async def observe(self, launch: LaunchRef) -> Observation:
        folder = self._folder / launch.external_job_id
        if run_of_name(launch.external_job_id) is None or not folder.is_dir():
            return Observation(LaunchState.MISSING)
        seconds = time.time() - folder.stat().st_mtime
        if not (folder / "status").exists():
            return Observation(LaunchState.RUNNING, execution_seconds=seconds)
        if (folder / "cancelled").exists():
            return Observation(LaunchState.CANCELLED, execution_seconds=seconds)
        if (folder / "status").read_text() == "0":
            return Observation(LaunchState.COMPLETED, execution_seconds=seconds)
        return Observation(LaunchState.FAILED, cause=EndCause.RAISED, execution_seconds=seconds)

    async def cancel(self, launch: LaunchRef) -> bool:
        folder = self._folder / launch.external_job_id
        if run_of_name(launch.external_job_id) is not None and folder.is_dir() and not (folder / "status").exists():
            if not (folder / "host").exists():
                return False  # it is being started
            (folder / "cancelled").touch()
            os.kill(int((folder / "host").read_text().split()[0]), signal.SIGTERM)
        return True

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        return EndpointHealth(True, 1, 0)

    @property
    def account(self) -> str:
        return self.endpoint

    async def owned(self) -> list[OwnedLaunch]:
        living = [path.name for path in self._folder.glob("lora-*") if not (path / "status").exists()]
        return [OwnedLaunch(name, run, None) for name in living if (run := run_of_name(name))]


def opened(settings: MachineSettings, http: httpx.AsyncClient) -> MachineLauncher:
    return MachineLauncher(settings.machines_folder)


if __name__ == "__main__":
    LAUNCHERS[MachineLauncher.name] = LauncherKind(MachineSettings, opened, lambda _: 10)  # type: ignore[index]
    main()
