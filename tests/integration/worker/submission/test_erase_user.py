"""`lora-worker erase-user` against a real project: files and rows of one user go, and nobody else's."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from tests.application.user import User
from tests.commands import check_keys
from tests.processes.stage import Stage
from tests.processes.warm_python import run_command


@pytest.fixture
def other(stage: Stage, tmp_path: Path) -> User:
    made = User(stage.project, tmp_path)
    yield made
    made.close()


def run(stage: Stage, *arguments: str, answer: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = stage.environment()
    return run_command("erase-user", *arguments, environment=environment, cwd=stage.folder, answer=answer or "")


def objects_of(stage: Stage, *parts: str) -> list[str]:
    rows = stage.database.rows("select bucket_id || '/' || name as place from storage.objects order by 1")
    return [row["place"] for row in rows if any(part in row["place"] for part in parts)]


def test_files_and_rows_of_the_user_go_and_others_stay(stage: Stage, other: User) -> None:
    job_id, others_dataset = stage.user.queue(), other.upload()
    stage.worker()
    assert stage.ended(job_id)["status"] == "completed"
    stage.settled(job_id)
    user = stage.user.user_id
    (run_row,) = stage.runs(job_id)
    stage.user.overwrite(f"{user}/{run_row['id']}/log.txt", b"log")
    stage.user.overwrite(f"uploads/{run_row['id']}/left.bin", b"left")
    assert len(objects_of(stage, user, run_row["id"])) > 3
    done = run(stage, user, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    check_keys("erase-user", answer, opaque={"rows"})
    assert answer["erased"] is True
    assert answer["files"] > 3
    assert objects_of(stage, user, run_row["id"]) == []
    for table in ("datasets", "training_jobs", "model_artifacts", "notifications", "cost_records", "training_runs"):
        assert stage.database.rows(f"select 1 from {table} where user_id = %s", user) == [], table
    assert objects_of(stage, other.user_id)
    assert stage.database.rows("select 1 from datasets where id = %s", others_dataset)
    again = run(stage, user, "--yes")
    assert again.returncode == 0
    assert again.stdout.startswith("erased: 0 files, no rows.")


def test_a_live_run_is_stopped_first(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=2000)
    worker = stage.worker()
    stage.training(job_id, step=1)
    done = run(stage, stage.user.user_id, "--yes", "--json", "--wait-seconds", "120")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["stopped_jobs"] == 1
    assert stage.stop(worker) == 0
    assert stage.runpod.orphans() == []


def test_without_a_worker_nothing_is_removed(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=2000)
    worker = stage.worker()
    stage.training(job_id, step=1)
    stage.kill(worker)
    done = run(stage, stage.user.user_id, "--yes", "--json", "--wait-seconds", "0")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert answer["erased"] is False
    assert "1 runs are still being stopped" in answer["reason"]
    assert objects_of(stage, stage.user.user_id)
    assert stage.user.job(job_id)["status"] == "cancelled"


def test_it_asks_and_names_nobody_unknown(stage: Stage) -> None:
    stage.user.upload()
    asked = run(stage, stage.user.user_id)
    assert asked.returncode == 2
    assert "give --yes" in asked.stderr
    unknown = run(stage, "nobody@example.com", "--yes")
    assert unknown.returncode == 2
    assert "no user has the id or mail address" in unknown.stderr
    nothing = run(stage, str(uuid4()), "--yes")
    assert nothing.returncode == 0
    assert objects_of(stage, stage.user.user_id)
