"""Machines that a cloud starts for one run each: their results arrive without a launcher, and none is left running."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sandbox.standin import Mishap, standin_env
from tests.application.user import LINE, PAIRS
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
        folders = [self.folder / "cloud" / f"lora-{run['id'].replace('-', '')}" for run in self.stage.runs(job_id)]
        return [folder for folder in folders if folder.is_dir()]

    def living(self) -> list[str]:
        """The machines that have not ended."""
        return [folder.name for folder in (self.folder / "cloud").glob("lora-*") if not (folder / "status").exists()]

    def launches(self, job_id: str) -> list[Row]:
        return self.stage.database.rows(
            "select l.* from training_launches l join training_runs r on r.id = l.run_id where r.job_id = %s", job_id
        )

    def closed(self, job_id: str) -> list[Row]:
        """The job's launches, once all of them have ended for the database."""
        until(lambda: all(row["ended_at"] for row in self.launches(job_id)), "launches are closed", state=self.log)
        return self.launches(job_id)

    def log(self) -> str:
        """What workers and machines have printed."""
        logs = [path.read_text() for path in (self.folder / "cloud").glob("*/log.txt")]
        return "\n".join([self.stage.log(), *logs])

    def close(self) -> None:
        for path in (self.folder / "cloud").glob("*/host"):
            for pid in map(int, path.read_text().split()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def cloud(stage_with: Callable[..., Stage], tmp_path: Path) -> Iterator[Cloud]:
    made = Cloud(stage_with(NoRunPod(), tmp_path / "volume"), tmp_path)
    try:
        yield made
    finally:
        made.close()


def dataset(stage: Stage, words: str) -> str:
    """A dataset whose words tell the stand-in of a training what to do."""
    return stage.user.upload(b"\n".join([LINE] * (PAIRS - 1) + [LINE.replace(b"question", words.encode())]))


def test_machines_without_an_output_end_their_runs_by_their_reports(cloud: Cloud) -> None:
    stage = cloud.stage
    (cloud.folder / "cloud" / "stay").touch()
    stays = stage.user.queue(max_steps=5)
    cloud.worker()
    assert stage.ended(stays)["status"] == "completed", cloud.log()
    (launch,) = cloud.closed(stays)
    # It went on after its result, and is billed until it was stopped.
    assert (cloud.machines(stays)[0] / "cancelled").exists()
    assert launch["gpu_seconds"] > 0
    assert len(stage.user.costs(stays)) == 1
    (cloud.folder / "cloud" / "stay").unlink()

    fails = stage.user.queue(dataset(stage, "fail in saving"), max_steps=5)
    ends = stage.user.queue(max_steps=5000, seed=int(Mishap.ENDLESS))
    moves = stage.user.queue(max_steps=5000, seed=int(Mishap.ENDLESS))
    stage.training(ends)
    stage.user.cancel_by_update(ends)
    stage.training(moves, step=10)
    # The cloud takes its machine back.
    os.kill(int((cloud.machines(moves)[0] / "host").read_text().split()[0]), signal.SIGTERM)

    failed = stage.ended(fails)
    assert (failed["status"], "It failed in" in failed["error_message"]) == ("failed", True), cloud.log()
    stage.settled(ends)
    assert stage.user.job(ends)["status"] == "cancelled"
    until(lambda: len({step.run_id for step in stage.steps(moves)}) == 2, "another trains it", state=cloud.log)
    first, _ = stage.runs(moves)
    assert (first["error_code"], first["fault"]) == ("interrupted", "infrastructure")
    stage.user.cancel_by_update(moves)
    stage.settled(moves)
    until(lambda: cloud.living() == [], "no machine is left", state=cloud.log)
    # It went on from its checkpoint.
    (second,) = {step.run_id for step in stage.steps(moves)} - {first["id"]}
    assert min(step.step for step in stage.steps(moves) if step.run_id == second) > 10


def test_machine_whose_worker_died_before_it_was_recorded_is_never_left(cloud: Cloud) -> None:
    stage = cloud.stage
    # It hangs before its check-in, so that nobody hears of it from the machine itself.
    cloud.set_environment(LORA_CRASH="trainer.check_in.before=stop")
    jobs = []
    for _ in range(2):
        jobs.append(stage.user.queue(max_steps=5))
        assert stage.dies(cloud.worker(LORA_CRASH="worker.launch.after_post=kill")) == -signal.SIGKILL
    ended, live = jobs
    assert len(cloud.living()) == 2
    assert [row["external_job_id"] for row in cloud.launches(live)] == [None]
    stage.user.cancel_by_update(ended)
    stage.expire_leases()
    cloud.worker()
    stage.until(live, lambda _: stage.runs(live)[0]["external_job_id"], "the machine is its run's")
    stage.user.cancel_by_update(live)
    for job_id in jobs:
        (run,) = stage.settled(job_id)
        (launch,) = cloud.closed(job_id)
        assert launch["external_job_id"] == f"lora-{run['id'].replace('-', '')}"
    until(lambda: cloud.living() == [], "no machine is left", state=cloud.log)
    assert "an unrecorded launch was found" in stage.log()
