"""A finished adapter becomes callable by its name before its manifest is uploaded, and no training fails for it."""

import shutil

import pytest

from lora_contract.protocol import Manifest
from lora_contract.serving import SERVING_FOLDER, Serving
from lora_trainer.errors import CancelledByUserError
from lora_trainer.handler import parse_request
from lora_trainer.run import serving
from lora_trainer.run.publishing import publish
from lora_trainer.run.serving import find_served_adapters, serve, withdraw
from lora_trainer.run.task import Outcome
from lora_trainer.settings import Settings
from tests.unit.trainer.project import request_input
from tests.unit.trainer.run.executing import Run
from tests.unit.trainer.run.served import make_adapter, served_value

NAME = "adapter-job-1"


def asked(name=NAME):
    output = request_input()["output"]
    return {"output": {**output, "serving_name": name}}


def yes():
    return True


async def test_adapter_is_served_by_the_asked_name_and_the_manifest_says_so(project, settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "succeed")
    result = await Run(settings, **asked()).result()
    folder = settings.volume / SERVING_FOLDER / NAME
    assert result.status == "completed"
    manifest = Manifest.model_validate_json(project.uploads["manifest.json"])
    assert manifest.serving == Serving(name=NAME, folder=str(folder))
    assert result.manifest.serving == manifest.serving
    assert (folder / "adapter_model.safetensors").read_bytes() == project.uploads["adapter_model.safetensors"]


async def test_adapter_is_there_before_the_first_file_is_uploaded(project, settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "succeed")
    seen = []

    async def look(*arguments, **named):
        seen.append((settings.volume / SERVING_FOLDER / NAME).is_dir())
        return await publish(*arguments, **named)

    monkeypatch.setattr("lora_trainer.run.execution.publish", look)
    await Run(settings, **asked()).result()
    assert seen == [True]


async def test_worker_that_asks_for_no_name_gets_none(project, settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "succeed")
    result = await Run(settings).result()
    assert result.manifest.serving is None
    assert not (settings.volume / SERVING_FOLDER).exists()


async def test_cancelled_run_takes_its_adapter_away(project, settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "succeed")

    async def cancelled_while_uploading(*arguments, **named):
        assert (settings.volume / SERVING_FOLDER / NAME).is_dir()
        raise CancelledByUserError("The job was cancelled.")

    monkeypatch.setattr("lora_trainer.run.execution.publish", cancelled_while_uploading)
    result = await Run(settings, **asked()).result()
    assert result.status == "failed"
    assert not (settings.volume / SERVING_FOLDER / NAME).exists()


@pytest.fixture
def ready(tmp_path):
    artifact = make_adapter(tmp_path / "artifact")
    return artifact, Outcome(status="trained", fingerprint="x"), parse_request(request_input(**asked()))


async def test_full_volume_is_a_note_and_no_failure(tmp_path, ready):
    settings = Settings(serving_folder=tmp_path / "served", least_free_gb=1e9)
    await serve(*ready, settings, is_current=yes)
    assert ready[1].serving is None
    [note] = ready[1].summary.notes
    assert note.startswith("The adapter can't be called by its name at an inference endpoint: There is no room")


async def test_volume_that_fills_up_while_writing_is_a_note(tmp_path, ready, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    await serve(*ready, Settings(serving_folder=tmp_path / "served"), is_current=yes)
    assert ready[1].summary.notes == [
        "The adapter can't be called by its name at an inference endpoint: the network volume is full."
    ]
    assert list((tmp_path / "served").iterdir()) == []


async def test_folder_that_may_not_be_written_is_a_note(tmp_path, ready):
    (tmp_path / "served").write_text("a file")
    await serve(*ready, Settings(serving_folder=tmp_path / "served"), is_current=yes)
    assert ready[1].serving is None
    assert "FileExistsError" in ready[1].summary.notes[0]


async def test_without_a_network_volume_nothing_is_served(tmp_path, ready, monkeypatch):
    monkeypatch.setattr(serving, "mounted_volume", lambda configured: None)
    assert find_served_adapters(Settings()) is None
    await serve(*ready, Settings(), is_current=yes)
    await withdraw("run-1", Settings())
    assert ready[1].serving is None
    assert ready[1].summary.notes == []


async def test_set_folder_is_used_without_a_volume_too(tmp_path, ready, monkeypatch):
    monkeypatch.setattr(serving, "mounted_volume", lambda configured: None)
    settings = Settings(serving_folder=tmp_path / "served")
    await serve(*ready, settings, is_current=yes)
    assert served_value(tmp_path / "served", NAME) == 1.0
    await withdraw(ready[2].run_id, settings)
    assert served_value(tmp_path / "served", NAME) is None
