"""A cloud that starts a machine for each run, in a folder, and workers that launch there."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_worker.launchers.marks import launch_name
from sandbox.standin import standin_env
from tests.database.rows import Row
from tests.processes.stage import Stage
from tests.processes.waiting import until


class NoRunPod:
    """Nothing is launched there."""

    api_url, api_key = "http://127.0.0.1:9/v2/none", "rpa_none"

    def __init__(self) -> None:
        self.faults = self

    def clear(self) -> None: ...

    def orphans(self) -> list[Any]:
        return []


class Cloud:
    """The folder of `tests.handlers.machine_worker`, and the stage of workers that launch there."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage, self.folder = stage, folder
        (folder / "cloud").mkdir()
        self.set_environment()

    def set_environment(self, **more: str) -> None:
        """Give the machines that start from now on these variables, too."""
        given = {**standin_env(self.folder / "volume"), "LORA_TRAINER_GRACE_SECONDS": "20", "HOME": str(self.folder)}
        (self.folder / "cloud" / "environment.json").write_text(json.dumps({**given, **more}))

    def worker(self, **more: str) -> Any:
        return self.stage.worker(
            module="tests.handlers.machine_worker", LORA_WORKER_LAUNCHER="machines",
            LORA_WORKER_MACHINES_FOLDER=str(self.folder / "cloud"), **more,
        )  # fmt: skip

    def machines(self, job_id: str) -> list[Path]:
        """The folders of the machines that were started for the job, in the order of its runs."""
        folders = [self.folder / "cloud" / launch_name(run["id"]) for run in self.stage.runs(job_id)]
        return [folder for folder in folders if folder.is_dir()]

    def living(self) -> list[str]:
        """The machines that have not ended."""
        return [folder.name for folder in (self.folder / "cloud").glob("lora-*") if not (folder / "status").exists()]

    def launches(self, job_id: str) -> list[Row]:
        return self.stage.database.rows(
            "select l.* from training_launches l join training_runs r on r.id = l.run_id where r.job_id = %s", job_id
        )

    def closed(self, job_id: str) -> list[Row]:
        """The job's launches that were accepted, once all of them have ended for the database."""

        def accepted() -> list[Row]:
            return [row for row in self.launches(job_id) if row["external_job_id"]]

        until(lambda: all(row["ended_at"] for row in accepted()), "launches are closed", state=self.log)
        return accepted()

    def log(self) -> str:
        """What workers and machines have printed."""
        logs = [path.read_text() for path in (self.folder / "cloud").glob("*/log.txt")]
        return "\n".join([self.stage.log(), *logs])

    def close(self) -> None:
        for path in (self.folder / "cloud").glob("*/host"):
            for pid in map(int, path.read_text().split()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
