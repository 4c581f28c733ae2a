"""A download ends with the verified files or with a sentence: nothing wrong gets a name, nothing else is touched."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from lora_contract.protocol import ArtifactFile, Manifest
from lora_worker.errors import ArgumentError, ArtifactError, ServiceRefusedError, ServiceUnavailableError, WorkerError
from lora_worker.services import Services
from lora_worker.submission.downloads import Download, download, place_in

JOB, RUN, USER = UUID(int=1), UUID(int=2), UUID(int=3)
FILES = {
    "adapter_config.json": b'{"r": 8}',
    "adapter_model.safetensors": bytes(range(256)) * 40,
    "logs/loss.png": b"png",
}


def manifest(files: dict[str, bytes]) -> bytes:
    listed = [
        ArtifactFile(name=path, path=path, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for path, content in files.items()
    ]
    return Manifest(job_id=str(JOB), run_id=str(RUN), files=listed).model_dump_json().encode()


class Bucket:
    """The bucket with one artifact; `breaks_after` bytes of an object the connection breaks."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.objects = {f"{USER}/{RUN}/{path}": content for path, content in files.items()}
        self.objects[f"{USER}/{RUN}/manifest.json"] = manifest(files)
        self.breaks_after: int | None = None
        self.sends_parts = True
        self.asked: list[tuple[str, int]] = []

    async def read(self, bucket: str, path: str, *, max_bytes: int) -> bytes | None:
        return self.objects.get(path)

    @asynccontextmanager
    async def stream(self, bucket: str, path: str, *, start: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
        self.asked.append((path.rpartition("/")[2], start))
        content = self.objects[path]
        if start and (not self.sends_parts or start >= len(content)):
            raise ServiceRefusedError("Storage", "no part", status=416)

        async def chunks() -> AsyncIterator[bytes]:
            sent = 0
            for at in range(start, len(content), 1000):
                if self.breaks_after is not None and sent >= self.breaks_after:
                    raise ServiceUnavailableError("Storage", "broke off")
                yield content[at : at + 1000]
                sent += 1000

        yield chunks()


def services(bucket: Bucket, **run: Any) -> Services:
    async def published(job_id: UUID) -> Any:
        found = {"queue": "training_jobs", "job_id": job_id, "user_id": USER, "status": "completed", "run_id": RUN}
        return None if job_id != JOB else {**found, **run}

    queue = SimpleNamespace(training_published_run=published)
    made = SimpleNamespace(queue=queue, storage=bucket, settings=SimpleNamespace(artifacts_bucket="lora-models"))
    return cast(Services, made)


async def fetch(bucket: Bucket, folder: Path, **run: Any) -> Download:
    return await download(services(bucket, **run), JOB, folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_all_files_of_the_manifest_are_fetched(tmp_path: Path) -> None:
    done = await fetch(Bucket(FILES), tmp_path / "new" / "folder")
    assert contents(tmp_path / "new" / "folder") == FILES
    assert {file.status for file in done.files} == {"downloaded"}


async def test_a_manifest_that_is_too_large_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any, **__: Any) -> bytes:
        raise ServiceRefusedError("Supabase Storage", "is larger", status=413)

    monkeypatch.setattr(Bucket, "read", refuse)
    with pytest.raises(ArtifactError, match="manifest is larger than"):
        await fetch(Bucket(FILES), tmp_path)


async def test_a_broken_download_leaves_no_file_and_goes_on_later(tmp_path: Path) -> None:
    bucket = Bucket(FILES)
    bucket.breaks_after = 3000
    with pytest.raises(ServiceUnavailableError):
        await fetch(bucket, tmp_path)
    assert "adapter_model.safetensors" not in contents(tmp_path)
    bucket.breaks_after, bucket.asked = None, []
    done = await fetch(bucket, tmp_path)
    assert ("adapter_model.safetensors", 3000) in bucket.asked
    assert contents(tmp_path) == FILES
    assert [file.status for file in done.files] == ["present", "downloaded", "downloaded"]


async def test_a_storage_without_parts_sends_the_file_from_its_start(tmp_path: Path) -> None:
    bucket = Bucket(FILES)
    bucket.breaks_after = 3000
    with pytest.raises(ServiceUnavailableError):
        await fetch(bucket, tmp_path)
    bucket.breaks_after, bucket.sends_parts = None, False
    await fetch(bucket, tmp_path)
    assert contents(tmp_path) == FILES


async def test_a_second_download_fetches_nothing(tmp_path: Path) -> None:
    bucket = Bucket(FILES)
    await fetch(bucket, tmp_path)
    bucket.asked = []
    done = await fetch(bucket, tmp_path)
    assert {file.status for file in done.files} == {"present"}
    assert bucket.asked == []


async def test_a_file_with_other_content_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(b"mine")
    with pytest.raises(ArgumentError, match="is another file: move it away"):
        await fetch(Bucket(FILES), tmp_path)
    assert contents(tmp_path)["adapter_config.json"] == b"mine"


@pytest.mark.parametrize("stored", [b'{"r": 9}', b"x", b"longer than what the manifest lists"], ids=ascii)
async def test_a_changed_object_gets_no_name(tmp_path: Path, stored: bytes) -> None:
    bucket = Bucket(FILES)
    bucket.objects[f"{USER}/{RUN}/adapter_config.json"] = stored
    with pytest.raises(ArtifactError, match=r"adapter_config\.json"):
        await fetch(bucket, tmp_path)
    assert "adapter_config.json" not in contents(tmp_path)
    assert all(len(content) <= len(FILES["adapter_config.json"]) for content in contents(tmp_path).values())


async def test_a_link_in_the_folder_leads_nowhere_else(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "logs").symlink_to(outside)
    with pytest.raises(ArtifactError, match="would be written outside"):
        await fetch(Bucket(FILES), folder)
    assert contents(outside) == {}


@pytest.mark.parametrize("path", ["../up.txt", "/etc/up.txt", "a/../../up.txt", "."])
def test_no_listed_path_leaves_the_folder(tmp_path: Path, path: str) -> None:
    with pytest.raises(ArtifactError):
        place_in(tmp_path / "folder", path)


async def test_a_manifest_with_such_a_path_is_damaged(tmp_path: Path) -> None:
    bucket = Bucket(FILES)
    name = f"{USER}/{RUN}/manifest.json"
    bucket.objects[name] = bucket.objects[name].replace(b'"path":"logs/loss.png"', b'"path":"../loss.png"')
    with pytest.raises(ArtifactError, match="damaged"):
        await fetch(bucket, tmp_path)


async def test_a_folder_without_room_is_refused_before_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(FILES)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(ArgumentError, match="has room for 100 bytes, and 10,251 are missing"):
        await fetch(bucket, tmp_path)
    assert bucket.asked == []


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        ({"status": "failed", "run_id": None}, "is failed: only a completed one has an adapter"),
        ({"run_id": None}, "was completed by another program"),
    ],
)
async def test_a_job_without_an_adapter_is_refused_in_words(tmp_path: Path, run: Any, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        await fetch(Bucket(FILES), tmp_path, **run)


async def test_unknown_job_and_removed_files_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="there is no job"):
        await download(services(Bucket(FILES)), UUID(int=9), tmp_path)
    bucket = Bucket(FILES)
    bucket.objects.clear()
    with pytest.raises(ArtifactError, match="its files were removed"):
        await fetch(bucket, tmp_path)


async def test_a_folder_that_is_a_file_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkerError, match="can't be used"):
        await fetch(Bucket(FILES), tmp_path / "file")
