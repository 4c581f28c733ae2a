import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lora_trainer.errors import RequestInvalidError, TrainingError
from lora_trainer.run.task import Outcome
from lora_trainer.run.volume import find_volume, open_job_folder, remove_stale_jobs
from lora_trainer.settings import Settings, load_settings, unread_settings


@pytest.mark.fault(46)
def test_configured_volume_is_preferred(tmp_path):
    assert find_volume(tmp_path) == tmp_path
    assert find_volume(None).is_absolute()


@pytest.mark.parametrize("job_id", ["../other", "a/b", "", "x" * 200, "a b"])
def test_job_id_unfit_as_a_folder_name_is_refused(tmp_path, job_id):
    with pytest.raises(RequestInvalidError):
        open_job_folder(tmp_path, job_id, "e1")


def test_later_execution_takes_the_folder_from_an_earlier_one(tmp_path):
    first, second = (open_job_folder(tmp_path, "job", name) for name in ("e1", "e2"))
    first.take("run")
    assert first.is_owned()
    second.take("run")
    assert second.is_owned()
    assert not first.is_owned(), "an execution that was believed dead would go on writing"


def test_only_seconds_of_the_same_runs_executions_are_counted(tmp_path):
    for name, run, seconds in (("e1", "run", 60), ("e2", "run", 30), ("e3", "other run", 500)):
        folder = open_job_folder(tmp_path, "job", name)
        folder.take(run)
        folder.note_seconds(run, seconds)
    own = open_job_folder(tmp_path, "job", "e4")
    own.take("run")
    own.note_seconds("run", 7)
    assert own.seconds_of_run("run") == 90


def test_partial_outcome_is_not_an_artifact(tmp_path):
    earlier = open_job_folder(tmp_path, "job", "e1")
    earlier.take("run")
    outcome = Outcome(status="trained", fingerprint="f")
    outcome.write(earlier.own)
    later = open_job_folder(tmp_path, "job", "e2")
    assert later.finished_artifact("f") == (earlier.own / "artifact", outcome)
    assert later.finished_artifact("other inputs") is None
    text = (earlier.own / "outcome.json").read_text()
    (earlier.own / "outcome.json").write_text(text[: len(text) // 2])
    assert later.finished_artifact("f") is None


def test_abandoned_folders_are_removed(tmp_path):
    old, fresh, own = (open_job_folder(tmp_path, name, "e") for name in ("old", "fresh", "own"))
    for folder in (old, fresh, own):
        folder.take("run")
    long_ago = time.time() - 20 * 86_400
    for folder in (old, own):
        for path in (folder.own / "seconds.json", folder.path):
            os.utime(path, (long_ago, long_ago))
    remove_stale_jobs(tmp_path, keep=own, keep_days=14)
    assert sorted(path.name for path in (tmp_path / "lora-jobs").iterdir()) == ["fresh", "own"]


def test_wrong_endpoint_variable_is_named(monkeypatch):
    monkeypatch.setenv("LORA_TRAINER_GRACE_SECONDS", "soon")
    with pytest.raises(TrainingError, match="LORA_TRAINER_GRACE_SECONDS"):
        load_settings()
    monkeypatch.setenv("LORA_TRAINER_GRACE_SECONDS", "5")
    monkeypatch.setenv("LORA_TRAINER_TRUST_REMOTE_CODE", json.dumps(["org/model"]))
    assert load_settings() == Settings(grace_seconds=5, trust_remote_code=["org/model"])


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("LORA_TRAINER_KEEP_DAY", "LORA_TRAINER_KEEP_DAYS may be meant"),
        ("lora-trainer-volume", "LORA_TRAINER_VOLUME may be meant"),
        ("LORA_TRAIN_GRACE_SECONDS", "LORA_TRAINER_GRACE_SECONDS may be meant"),
        ("LORA_TRAINER_ZEBRAS_IN_PARIS", "docs/settings.md lists them all"),
    ],
)
def test_misspelt_endpoint_variable_is_named_and_ignored(monkeypatch, name, near):
    for right in ("LORA_TRAINER_VOLUME", "lora_trainer_keep_days", "LORA_CRASH", "LORA_STANDIN_LOG"):
        monkeypatch.setenv(right, "1")
    assert unread_settings() == []
    monkeypatch.setenv(name, "hidden")
    assert unread_settings() == [f"{name} is no setting of the trainer: {near}; rename it, or take it away."]
    assert load_settings()


def test_two_executions_can_take_a_jobs_folder_at_the_same_time(tmp_path):
    folders = [open_job_folder(tmp_path, "job", f"e{number}") for number in range(4)]
    with ThreadPoolExecutor(len(folders)) as pool:
        for _ in range(50):
            list(pool.map(lambda folder: folder.take("run"), folders))
            assert sum(folder.is_owned() for folder in folders) == 1
    assert list(tmp_path.rglob("*.part")) == []
