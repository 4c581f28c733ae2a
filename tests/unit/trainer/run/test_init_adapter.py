"""The earlier adapter with which a run begins: its two files are fetched, checked, and part of what was trained."""

import hashlib

import httpx
import pytest

from lora_contract.error_codes import ErrorCode
from lora_contract.protocol import AdapterRef
from lora_trainer.errors import InitAdapterUnreachableError, InitAdapterUnusableError
from lora_trainer.handler import parse_request
from lora_trainer.run.download import download_adapter
from lora_trainer.run.execution import fingerprint_of
from tests.unit.trainer.project import URL, refusal, request_input
from tests.unit.trainer.run.executing import Run, child_note

FILES = {"adapter_config.json": b'{"r": 4}', "adapter_model.safetensors": b"weights"}


def reference(**changes):
    files = [
        {
            "name": name,
            "url": f"{URL}/adapter/{name}?token=secret",
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            **changes.get(name.split(".")[0], {}),
        }
        for name, content in FILES.items()
    ]
    return {"id": "artifact-1", "base_model": "tiny", "base_revision": None, "files": files}


@pytest.fixture
def stored(project):
    for name, content in FILES.items():
        project.router.get(f"{URL}/adapter/{name}").mock(return_value=httpx.Response(200, content=content))
    return project


async def test_both_files_reach_the_training_without_their_urls(stored, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "fail")
    run = Run(settings, init_adapter=reference(), hyperparameters={"base_model": "tiny", "init_adapter": "artifact-1"})
    result = await run.result()
    assert result.error.code is ErrorCode.DATASET_INVALID, "the training was reached"
    note = child_note(tmp_path)
    assert note["task"]["init_adapter"] == {"id": "artifact-1", "base_model": "tiny", "base_revision": None}
    assert "secret" not in str(note)
    folder = next(settings.volume.glob("lora-jobs/job-1/*/init_adapter"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES


async def test_larger_file_than_announced_ends_the_download_early(stored, tmp_path):
    taken = 0

    async def endless():
        nonlocal taken
        while True:
            taken += 1 << 16
            yield b"x" * (1 << 16)

    stored.router.get(f"{URL}/adapter/adapter_model.safetensors").mock(
        return_value=httpx.Response(200, content=endless())
    )
    with pytest.raises(InitAdapterUnreachableError, match="more than 7 bytes"):
        await download_adapter(AdapterRef.model_validate(reference()), tmp_path / "adapter")
    assert taken <= 4 << 20


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"adapter_model": {"sha256": "0" * 64}}, InitAdapterUnreachableError, "sha256 differs"),
        ({"adapter_model": {"bytes": 10**12}}, InitAdapterUnusableError, "more than an adapter can have"),
        ({"adapter_config": {"bytes": 10**7}}, InitAdapterUnusableError, "more than an adapter can have"),
        ({"adapter_config": {"name": "code.py"}}, InitAdapterUnusableError, "does not consist of"),
        ({"adapter_config": {"name": "adapter_model.safetensors"}}, InitAdapterUnusableError, "does not consist of"),
    ],
    ids=["sha256", "weights", "configuration", "name", "twice"],
)
async def test_file_that_is_not_as_announced_is_refused(stored, tmp_path, changes, error, words):
    with pytest.raises(error, match=words) as caught:
        await download_adapter(AdapterRef.model_validate(reference(**changes)), tmp_path / "adapter")
    assert "secret" not in str(caught.value)


async def test_deleted_adapter_is_named_without_its_url(stored, tmp_path):
    stored.router.get(f"{URL}/adapter/adapter_config.json").mock(
        return_value=refusal("404", "NoSuchKey", "Object not found")
    )
    with pytest.raises(InitAdapterUnreachableError, match="adapter's file is not in the storage") as caught:
        await download_adapter(AdapterRef.model_validate(reference()), tmp_path / "adapter")
    assert "secret" not in str(caught.value)


def test_another_adapter_is_another_training():
    same, other = reference(), reference(adapter_model={"sha256": "1" * 64})
    found = {
        fingerprint_of(parse_request(request_input(**changes)), "0" * 64)
        for changes in ({}, {"init_adapter": same}, {"init_adapter": other})
    }
    assert len(found) == 3


async def test_adapter_that_the_worker_did_not_look_for_is_refused(project, settings, monkeypatch):
    monkeypatch.setenv("FAKE_CHILD", "succeed")
    run = Run(settings, hyperparameters={"base_model": "tiny", "init_adapter": "artifact-1"})
    result = await run.result()
    assert (result.status, result.error.code) == ("failed", ErrorCode.HYPERPARAMETERS_INVALID)
    assert "earlier adapter" in result.error.message
