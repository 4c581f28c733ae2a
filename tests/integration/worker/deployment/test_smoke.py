"""`lora-worker deploy smoke`: a real job through the whole chain, and nothing of it left, however it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import check_keys
from tests.processes.stage import Stage
from tests.processes.waiting import PATIENCE_SECONDS, until

Smoke = Callable[..., subprocess.Popen[str]]
OPERATOR = "operator@lora-worker.internal"
OWNER = "(select id from auth.users where email = %s)"


@pytest.fixture(autouse=True)
def clean(stage: Stage) -> Any:
    """The operator's rows of other tests are gone before, and none of a trial is left after."""
    # A worker of the test before would still be taken for a living one.
    stage.database.rows("delete from training_workers")
    stage.database.rows(
        "delete from training_jobs where user_id in (select id from auth.users where email = %s)", OPERATOR
    )
    stage.database.rows("delete from datasets where user_id in (select id from auth.users where email = %s)", OPERATOR)
    # The operator's files of other tests stay.
    before = left_over(stage)
    yield
    assert [row for row in left_over(stage) if row not in before] == []


@pytest.fixture
def smoke(stage: Stage, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command with a stage's settings; it ends with the test at the latest."""
    started = []

    def start(*arguments: str, **more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "lora_worker.commands.cli", "deploy", "smoke", *arguments],
            env=stage.environment(**more),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def left_over(stage: Stage) -> list[str]:
    """What is there of trials: rows of each table by owner or job, and stored objects."""
    found = []
    for table in ("training_jobs", "datasets", "training_runs", "cost_records", "notifications", "model_artifacts"):
        rows = stage.database.rows(f"select * from {table} where user_id in {OWNER}", OPERATOR)
        found += [f"{table} {row}" for row in rows]
    objects = stage.database.rows(
        f"select bucket_id, name from storage.objects where split_part(name, '/', 1) = {OWNER}::text",
        OPERATOR,
    )
    return found + [f"object {row}" for row in objects]


def test_without_a_worker_the_command_works_on_the_queue_itself(stage: Stage, smoke: Smoke) -> None:
    process = smoke("--json")
    stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, stderr
    assert "no worker runs: this command works on the queue itself" in stderr
    value = json.loads(stdout)
    check_keys("deploy smoke", value)
    assert (value["status"], value["removed"], value["problem"]) == ("completed", True, None)
    assert {stage["stage"] for stage in value["stages"]} >= {"cold_start"}
    assert value["files"] >= 2
    assert value["usd"] >= 0


def test_with_a_running_worker_it_only_waits(stage: Stage, smoke: Smoke) -> None:
    stage.worker()
    until(
        lambda: "worker_started" in stage.log() or "worker started" in stage.log(), "the worker runs", state=stage.log
    )
    process = smoke()
    stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, stderr
    assert "this command works on the queue itself" not in stderr
    assert "the adapter is what its manifest says" in stdout
    assert "its job, dataset and files are removed" in stdout


def test_a_failed_job_exits_with_3_and_leaves_nothing(stage: Stage, smoke: Smoke) -> None:
    stage.runpod.faults.add("dispatch", "time_out", times=None)
    process = smoke(LORA_WORKER_MAX_INFRASTRUCTURE_FAILURES="1", LORA_WORKER_MAX_ATTEMPTS="1")
    stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 3, stderr
    assert "the trial's job is failed: " in stderr
    assert "its job, dataset and files are removed" in stdout


def test_ctrl_c_ends_the_job_and_leaves_nothing(stage: Stage, smoke: Smoke) -> None:
    # It stops there, so that the trial can't be over before the key is pressed.
    process = smoke(LORA_CRASH="worker.launch.after_record=stop")
    rows = f"select status from training_jobs where user_id in {OWNER}"
    until(lambda: any(row["status"] == "running" for row in stage.database.rows(rows, OPERATOR)), "the trial runs")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr


def test_other_peoples_jobs_are_not_begun(stage: Stage, smoke: Smoke) -> None:
    job_id = stage.user.queue()
    process = smoke()
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2
    assert "no worker runs, and 1 jobs wait" in stderr
    assert stage.user.job(job_id)["status"] == "queued"
