"""A job begins only with a finished adapter of its own user and base model; else one sentence says why not."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from lora_contract.protocol import ADAPTER_FILES, ArtifactFile, Manifest, Summary
from lora_worker.datasets.init_adapters import InitAdapter, find_init_adapter, sign_files
from lora_worker.errors import ObjectMissingError, PreflightError
from tests.scripted import make_services

BASE = "org/base"
USER, RUN, JOB = uuid4(), uuid4(), uuid4()
READY = {"run_id": RUN, "queue": "training_jobs", "job_id": JOB, "model_id": RUN, "status": "ready"}
FILES = [ArtifactFile(name=name, path=name, bytes=7, sha256="0" * 64) for name in (*ADAPTER_FILES, "README.md")]


class Bucket:
    """The files of one adapter; `size` is that of every file."""

    def __init__(self, manifest: Manifest | None, size: int | None = 7) -> None:
        self.content = manifest and manifest.model_dump_json().encode()
        self.bytes = size

    async def read(self, bucket: str, path: str, *, max_bytes: int) -> bytes | None:
        assert path == f"{USER}/{RUN}/manifest.json"
        return self.content

    async def size(self, bucket: str, path: str) -> int | None:
        return self.bytes

    async def sign_download(self, bucket: str, path: str, *, seconds: float) -> str:
        if self.bytes is None:
            raise ObjectMissingError("Supabase Storage", "it is not in the storage", status=404)
        return f"https://storage.test/{bucket}/{path}?token=secret"


def manifest(base_model: str | None = BASE, files: list[ArtifactFile] = FILES) -> Manifest:
    summary = Summary(base_model=base_model, base_revision="abc")
    return Manifest(job_id=str(JOB), run_id=str(RUN), files=files, summary=summary)


def find(answer: dict[str, Any] | None, bucket: Bucket, named: str = str(RUN)) -> InitAdapter:
    async def training_init_adapter(user_id: UUID, adapter_id: UUID) -> Any:
        assert (user_id, str(adapter_id)) == (USER, named)
        return answer

    queue = SimpleNamespace(training_init_adapter=training_init_adapter)
    return asyncio.run(find_init_adapter(named, USER, BASE, make_services(queue=queue, storage=bucket)))


def test_adapter_is_handed_out_as_its_two_files_with_their_hashes() -> None:
    bucket = Bucket(manifest())
    adapter = find(READY, bucket)
    reference = asyncio.run(sign_files(adapter, make_services(storage=bucket), seconds=60))
    assert [file.name for file in reference.files] == list(ADAPTER_FILES)
    assert {(file.sha256, file.bytes) for file in reference.files} == {("0" * 64, 7)}
    assert (reference.id, reference.base_model, reference.base_revision) == (str(RUN), BASE, "abc")
    assert reference.files[0].url.startswith(f"https://storage.test/lora-models/{USER}/{RUN}/")
    assert "secret" not in repr(reference)


@pytest.mark.parametrize(
    ("answer", "bucket", "told"),
    [
        (None, Bucket(manifest()), "you have no adapter"),
        (READY | {"status": "deleted"}, Bucket(manifest()), "was deleted"),
        (READY | {"status": "running", "run_id": None}, Bucket(manifest()), "is running"),
        (READY | {"status": "foreign", "run_id": None}, Bucket(manifest()), "not made by this service"),
        (READY, Bucket(None), "not in the storage any more"),
        (READY, Bucket(manifest(), size=None), "not in the storage any more"),
        (READY, Bucket(manifest(), size=8), "not in the storage any more"),
        (READY, Bucket(manifest(files=FILES[1:])), "not in the storage any more"),
        (READY, Bucket(manifest("org/other")), "was trained on org/other, and this job is for org/base"),
        (READY, Bucket(manifest(None)), "does not say on which base model"),
    ],
)
def test_unusable_adapter_ends_the_job_with_one_sentence(answer: Any, bucket: Bucket, told: str) -> None:
    with pytest.raises(PreflightError, match=told) as caught:
        find(answer, bucket)
    text = str(caught.value)
    assert text.startswith("hyperparameters: init_adapter: ")
    assert text.count(". ") == 0


def test_base_that_is_named_by_a_folder_is_the_same_base() -> None:
    async def training_init_adapter(_: UUID, __: UUID) -> Any:
        return READY

    queue = SimpleNamespace(training_init_adapter=training_init_adapter)
    services = make_services(queue=queue, storage=Bucket(manifest("tiny")))
    assert asyncio.run(find_init_adapter(str(RUN), USER, "/models/tiny", services)).base_model == "tiny"
    with pytest.raises(PreflightError, match="was trained on tiny"):
        asyncio.run(find_init_adapter(str(RUN), USER, "tiny/tiny", services))


def test_name_that_is_no_id_is_refused_before_any_call() -> None:
    services = make_services(queue=SimpleNamespace(training_init_adapter=None))
    with pytest.raises(PreflightError, match="is no id") as caught:
        asyncio.run(find_init_adapter("../" + "x" * 300, USER, BASE, services))
    assert len(str(caught.value)) < 250


def test_files_that_go_between_check_and_launch_end_the_job() -> None:
    adapter = find(READY, Bucket(manifest()))
    with pytest.raises(PreflightError, match="not in the storage any more"):
        asyncio.run(sign_files(adapter, make_services(storage=Bucket(None, size=None)), seconds=60))
