"""`lora-worker enqueue` and `download` against a real project: what is stored, refused, finished and fetched."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.application.user import BASE_MODEL, DATASET_WORD, LINE
from tests.commands import check_keys
from tests.database.rows import Row
from tests.processes.stage import Stage
from tests.processes.warm_python import run_command


class Shell:
    """The command line with a stage's settings."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage, self.folder = stage, folder

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return run_command(*arguments, environment=self.stage.environment(**environment), cwd=self.folder)

    def json(self, *arguments: str) -> Any:
        done = self(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def rows(self, query: str, *values: Any) -> list[Row]:
        return self.stage.database.rows(query, *values)


@pytest.fixture
def shell(stage: Stage, tmp_path: Path) -> Shell:
    return Shell(stage, tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A dataset of four pairs that no other test has."""
    made = tmp_path / "Zebras ü?.jsonl"
    lines = [LINE.replace(b"question", f"question {uuid4()}".encode()) for _ in range(4)]
    made.write_bytes(b"\n".join(lines))
    return made


def objects_of(shell: Shell, user: str) -> list[str]:
    found = shell.rows(
        "select name from storage.objects where bucket_id = 'lora-datasets' and name like %s", f"{user}/%"
    )
    return [row["name"] for row in found]


def test_a_file_becomes_a_job_that_trains_and_is_fetched(shell: Shell, file: Path, tmp_path: Path) -> None:
    user = shell.stage.user.user_id
    queued = shell.json("enqueue", str(file), "--user", user, "--epochs", "2", "--rank", "8", "--name", "Stripes")
    check_keys("enqueue", queued)
    assert queued["pairs"] == 4
    job = shell.stage.user.job(queued["job_id"])
    assert (job["status"], job["total_epochs"], job["preset_id"]) == ("queued", 2, "custom")
    assert job["hyperparameters"]["base_model"] == BASE_MODEL
    assert (job["hyperparameters"]["rank"], job["hyperparameters"]["num_epochs"]) == (8, 2)
    assert job["dataset"] == {"id": queued["dataset_id"], "name": "Stripes", "total_training_pairs": 4}
    shell.stage.worker()
    assert shell.stage.ended(queued["job_id"])["status"] == "completed"
    fetched = shell.json("download", queued["job_id"], str(tmp_path / "adapter"))
    check_keys("download", fetched)
    for listed in fetched["files"]:
        assert (tmp_path / "adapter" / listed["path"]).stat().st_size == listed["bytes"]
    again = shell("download", queued["job_id"], str(tmp_path / "adapter"))
    assert again.returncode == 0
    assert "there already" in again.stderr


def test_waiting_shows_the_job_and_exits_as_it_ended(shell: Shell, file: Path) -> None:
    user = shell.stage.user.user_id
    shell.stage.worker()
    waited = shell("enqueue", str(file), "--user", user, "--wait", "--json")
    assert waited.returncode == 0, waited.stderr
    ended = json.loads(waited.stdout)
    # Known also to whom Ctrl-C interrupts before the answer.
    assert f"queued as {ended['job_id']}\n" in waited.stderr
    assert ended["status"] == "completed"
    check_keys("enqueue wait", ended)
    shown = shell("enqueue", str(file), "--user", user, "--wait")
    assert shown.returncode == 0
    assert shown.stdout.startswith("queued as ")
    assert "completed" in shown.stdout


def test_a_bad_file_is_refused_with_its_line_and_nothing_stored(shell: Shell, file: Path) -> None:
    user = shell.stage.user.user_id
    file.write_bytes(LINE + b"\n" + LINE.replace(b"assistant", b"zebra") + b"\n")
    done = shell("enqueue", str(file), "--user", user)
    assert done.returncode == 2
    assert "nothing is stored: Line 2 of the dataset" in done.stderr
    assert DATASET_WORD not in done.stderr
    assert objects_of(shell, user) == []
    assert shell.rows("select 1 from datasets where user_id = %s", user) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--base", "no/model"], "base_model 'no/model' is not offered"),
        (["--epochs", "99"], "epochs is 99"),
        (["--gpu", "abacus"], "'abacus' is not a GPU that is offered"),
        (["--user", "nobody@example.com"], "no user has the id or mail address"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_stored(
    shell: Shell, file: Path, arguments: list[str], sentence: str
) -> None:
    user = shell.stage.user.user_id
    done = shell("enqueue", str(file), *(["--user", user] if "--user" not in arguments else []), *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert shell.rows("select 1 from datasets where file_name = %s and user_id = %s", file.name, user) == []


def test_a_file_that_is_not_there_is_one_sentence(shell: Shell) -> None:
    done = shell("enqueue", "nowhere.jsonl")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("nowhere.jsonl can't be read (No such file or directory)")


def test_a_second_enqueue_uses_the_same_dataset(shell: Shell, file: Path) -> None:
    user = shell.stage.user.user_id
    first = shell.json("enqueue", str(file), "--user", user)
    again = shell("enqueue", str(file), "--user", user, "--json")
    second = json.loads(again.stdout)
    assert "stored already" in again.stderr
    assert second["dataset_id"] == first["dataset_id"]
    assert second["job_id"] != first["job_id"]
    assert len(objects_of(shell, user)) == 1


def test_an_enqueue_that_was_broken_off_is_finished_by_the_next(shell: Shell, file: Path) -> None:
    user = shell.stage.user.user_id
    first = shell.json("enqueue", str(file), "--user", user)
    # As after a crash between the upload and the rows.
    shell.rows("delete from training_jobs where id = %s", first["job_id"])
    shell.rows("delete from datasets where id = %s", first["dataset_id"])
    second = shell.json("enqueue", str(file), "--user", user)
    assert second["dataset_id"] == first["dataset_id"]
    assert len(objects_of(shell, user)) == 1


def test_a_deleted_dataset_is_stored_anew(shell: Shell, file: Path) -> None:
    user = shell.stage.user.user_id
    first = shell.json("enqueue", str(file), "--user", user)
    shell.rows("update datasets set deleted_at = now() where id = %s", first["dataset_id"])
    second = shell.json("enqueue", str(file), "--user", user)
    assert second["dataset_id"] != first["dataset_id"]
    assert sorted(name.split("/")[1] for name in objects_of(shell, user)) == sorted(
        [first["dataset_id"], second["dataset_id"]]
    )


def test_without_a_user_the_operators_own_is_made_once(shell: Shell, file: Path) -> None:
    first = shell.json("enqueue", str(file))
    second = shell.json("enqueue", str(file))
    assert first["user_id"] == second["user_id"]
    (user,) = shell.rows("select email from auth.users where id = %s", first["user_id"])
    assert user["email"] == "operator@lora-worker.internal"
    by_mail = shell.json("enqueue", str(file), "--user", "Operator@LoRA-worker.internal")
    assert by_mail["user_id"] == first["user_id"]
    shell.rows("delete from training_jobs where user_id = %s", first["user_id"])
    shell.rows("delete from datasets where user_id = %s", first["user_id"])


def test_download_of_an_unfinished_or_unknown_job_is_one_sentence(shell: Shell, file: Path) -> None:
    queued = shell.json("enqueue", str(file), "--user", shell.stage.user.user_id)
    for job, sentence in (
        (queued["job_id"], "is queued: only a completed one has an adapter"),
        (str(uuid4()), "there is no job"),
        ("seven", "is neither a job's id nor the beginning of one"),
    ):
        done = shell("download", job, "adapter")
        assert done.returncode == 2
        assert sentence in done.stderr
    assert not (shell.folder / "adapter").exists()
