"""A finished adapter is tried before it is published, and neither trained nor tried twice."""

import json

import pytest

from lora_contract.error_codes import FAULTS, ErrorCode, Fault
from lora_contract.protocol import Manifest
from tests.unit.trainer.run.executing import Run


@pytest.fixture
def settings(settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "succeed")
    return settings.model_copy(update={"proof": "tests.unit.trainer.fake_proof"})


def tries(tmp_path) -> list[dict]:
    note = tmp_path / "proofs.jsonl"
    return [json.loads(line) for line in note.read_text().splitlines()] if note.exists() else []


async def test_proof_is_in_the_manifest_and_of_the_file_that_it_lists(project, settings, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_PROOF", "succeed")
    result = await Run(settings).result()
    assert result.status == "completed"
    manifest = Manifest.model_validate_json(project.uploads["manifest.json"])
    listed = {file.name: file.sha256 for file in manifest.files}
    assert manifest.application.adapter_sha256 == listed["adapter_model.safetensors"]
    [task] = tries(tmp_path)
    assert task["precision"] is None
    assert "token" not in json.dumps(task), "the process may run code of the model"


@pytest.mark.parametrize("first", ["crash", "out_of_memory"])
async def test_try_that_crashed_is_repeated_once_with_less(project, settings, monkeypatch, tmp_path, first):
    monkeypatch.setenv("FAKE_PROOF", f"{first} succeed")
    assert (await Run(settings).result()).status == "completed"
    assert [task["precision"] for task in tries(tmp_path)] == [None, "nf4"]


@pytest.mark.parametrize("ends", ["crash", "out_of_memory", "base_model_mismatch", "base_model_unknown", "internal"])
async def test_adapter_that_could_not_be_tried_waits_and_is_not_trained_again(
    project, settings, monkeypatch, tmp_path, ends
):
    monkeypatch.setenv("FAKE_PROOF", ends)
    result = await Run(settings).result()
    assert (result.status, result.error.code) == ("unpublished", ErrorCode.PROOF_MISSING)
    assert FAULTS[result.error.code] is Fault.TRANSIENT
    assert "without training again" in result.error.hint
    assert project.uploads == {}
    assert len(tries(tmp_path)) == 2

    monkeypatch.setenv("FAKE_CHILD", "exit:9")
    monkeypatch.setenv("FAKE_PROOF", "succeed")
    assert (await Run(settings).result()).status == "completed"
    assert len(tries(tmp_path)) == 3


async def test_refused_files_fail_the_job_with_the_sentence(project, settings, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_PROOF", "not_applied")
    result = await Run(settings).result()
    assert (result.status, result.error.sentence()) == ("failed", "It went wrong. Mend it.")
    assert FAULTS[result.error.code] is Fault.PERMANENT
    assert result.summary.total_steps == 3, "what was trained is still told"
    assert project.uploads == {}
    assert len(tries(tmp_path)) == 1


async def test_full_volume_is_told_and_not_tried_again(project, settings, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_PROOF", "disk_full")
    result = await Run(settings).result()
    assert (result.status, result.error.code, len(tries(tmp_path))) == ("failed", ErrorCode.DISK_FULL, 1)


async def test_proof_that_lost_the_folder_ends_as_superseded(project, settings, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_PROOF", "superseded")
    result = await Run(settings).result()
    assert (result.status, len(tries(tmp_path))) == ("superseded", 1)
    assert project.uploads == {}


async def test_proof_is_kept_where_only_the_upload_failed(project, settings, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_PROOF", "succeed")
    project.upload_statuses = {"manifest.json": [400]}
    assert (await Run(settings).result()).status == "unpublished"
    monkeypatch.setenv("FAKE_CHILD", "exit:9")
    result = await Run(settings).result()
    assert (result.status, len(tries(tmp_path))) == ("completed", 1)
    assert result.manifest.application is not None


async def test_proof_is_not_kept_where_the_weights_are_others(project, settings, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_PROOF", "succeed")
    project.upload_statuses = {"manifest.json": [400]}
    assert (await Run(settings).result()).status == "unpublished"
    [weights] = settings.volume.glob("lora-jobs/job-1/*/artifact/adapter_model.safetensors")
    weights.write_bytes(b"others")
    assert (await Run(settings).result()).status == "completed"
    assert len(tries(tmp_path)) == 2


async def test_machine_that_is_taken_away_during_the_trial_loses_no_training(project, settings, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_PROOF", "wait succeed")
    run = Run(settings)
    task = run.start()
    await run.until_file("trying")
    run.execution.stop.set()
    result = await task
    assert (result.status, result.error.code) == ("unpublished", ErrorCode.GRANT_MISSING)
    monkeypatch.setenv("FAKE_CHILD", "exit:9")
    assert (await Run(settings).result()).status == "completed"
