"""A settled artifact can't be changed: neither by an upload URL nor by a worker that dies during the copy."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from lora_contract.protocol import ArtifactFile, Manifest
from lora_worker.errors import ArtifactError, LeaseLostError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.storage.publication import collect, has_manifest
from tests.unit.artifact_stores import PATHS, RUN_ID, MemoryBucket, store_of

RUN = UUID(RUN_ID)
FILES = {"adapter_model.safetensors": b"w" * 5000, "adapter_config.json": b"{}"}
KEPT = {f"user/run/{name}": content for name, content in FILES.items()}


def listed(contents: dict[str, bytes], **changes: Any) -> Manifest:
    entries = [
        ArtifactFile(name=name, path=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in contents.items()
    ]
    return Manifest(job_id="job", run_id=RUN_ID, files=entries).model_copy(update=changes)


def published(files: dict[str, bytes] = FILES, manifest: Manifest | None = None) -> MemoryBucket:
    bucket = MemoryBucket()
    bucket.objects = {PATHS.staged(name): content for name, content in files.items()}
    bucket.objects[PATHS.staged("manifest.json")] = (manifest or listed(files)).model_dump_json().encode()
    return bucket


async def test_uploads_are_copied_to_final_paths_with_the_manifest_last() -> None:
    bucket = published()
    staged = bucket.objects[PATHS.staged("manifest.json")]
    assert await collect(store_of(bucket), run_id=RUN) == listed(FILES)
    assert {name: bucket.objects[name] for name in KEPT} == KEPT
    assert bucket.objects["user/run/manifest.json"] == staged
    assert bucket.calls[-1] == ("write", "user/run/manifest.json")


async def test_without_a_published_manifest_nothing_is_copied() -> None:
    assert await collect(store_of(MemoryBucket()), run_id=RUN) is None
    assert not await has_manifest(store_of(MemoryBucket()).storage, "lora-models", PATHS)
    assert await has_manifest(store_of(published()).storage, "lora-models", PATHS)


async def test_bytes_changed_before_the_copy_are_detected_in_the_copy() -> None:
    bucket = published()
    weights = PATHS.staged("adapter_model.safetensors")

    def overwrite(call: str, path: str) -> None:
        if (call, path) == ("copy", weights):
            bucket.objects[weights] = b"x" * 5000

    bucket.before = overwrite
    with pytest.raises(ArtifactError, match="not the file that the training saved"):
        await collect(store_of(bucket), run_id=RUN)
    assert "user/run/manifest.json" not in bucket.objects


async def test_upload_after_the_copy_does_not_change_the_copy() -> None:
    bucket = published()
    weights = PATHS.staged("adapter_model.safetensors")

    def overwrite(call: str, path: str) -> None:
        if (call, path) == ("stream", "user/run/adapter_model.safetensors"):
            bucket.objects[weights] = b"x" * 5000

    bucket.before = overwrite
    assert await collect(store_of(bucket), run_id=RUN) is not None
    assert bucket.objects["user/run/adapter_model.safetensors"] == FILES["adapter_model.safetensors"]


@pytest.mark.parametrize(("fatal", "visit"), [("copy", 1), ("copy", 2), ("stream", 1), ("stream", 2), ("write", 1)])
async def test_interrupted_copy_is_resumed_without_copying_files_twice(fatal: str, visit: int) -> None:
    bucket, visits = published(), iter(range(1, 10))

    def die(call: str, path: str) -> None:
        if call == fatal and next(visits) == visit:
            raise ServiceUnavailableError("Supabase Storage", "is away")

    bucket.before = die
    with pytest.raises(ServiceUnavailableError):
        await collect(store_of(bucket), run_id=RUN)
    copied = {PATHS.staged(name) for name in FILES if f"user/run/{name}" in bucket.objects}
    bucket.before, bucket.calls = lambda call, path: None, []
    assert await collect(store_of(bucket), run_id=RUN) == listed(FILES)
    assert not copied & {path for call, path in bucket.calls if call == "copy"}
    assert {name: bucket.objects[name] for name in KEPT} == KEPT


async def test_copied_files_are_not_replaced_by_later_uploads() -> None:
    bucket = published()
    await collect(store_of(bucket), run_id=RUN)
    other = {"adapter_model.safetensors": b"another"}
    bucket.objects |= published(other).objects
    assert await collect(store_of(bucket), run_id=RUN) == listed(FILES)
    assert {name: bucket.objects[name] for name in KEPT} == KEPT


async def test_file_too_large_to_hash_is_always_copied() -> None:
    bucket = published()
    bucket.objects |= {name: b"x" * len(content) for name, content in KEPT.items()}
    await collect(store_of(bucket, sha256_max_bytes=0), run_id=RUN)
    assert {name: bucket.objects[name] for name in KEPT} == KEPT


async def test_an_upload_of_another_size_is_refused_before_it_is_copied() -> None:
    bucket = published()
    bucket.objects[PATHS.staged("adapter_model.safetensors")] = b"x" * 100_000
    with pytest.raises(ArtifactError, match="has 100000 bytes in the storage instead of 5000"):
        await collect(store_of(bucket), run_id=RUN)
    assert ("copy", PATHS.staged("adapter_model.safetensors")) not in bucket.calls


async def test_a_missing_file_is_named() -> None:
    bucket = published()
    del bucket.objects[PATHS.staged("adapter_config.json")]
    with pytest.raises(ArtifactError, match=r"adapter_config\.json is missing"):
        await collect(store_of(bucket), run_id=RUN)


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (listed(FILES, run_id="another"), "another run"),
        (listed({}), "lists no file"),
        (listed(FILES, files=listed(FILES).files * 2), "a file twice"),
        (listed({"manifest.json": b"{}"}), "the worker's own"),
        (listed({"log.txt": b"{}"}), "the worker's own"),
        (listed({}, files=[ArtifactFile(name="a", path="a", bytes=10**11, sha256="0" * 64)]), "more bytes than"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_manifest_of_another_artifact_is_refused(manifest: Manifest, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        await collect(store_of(published(manifest=manifest)), run_id=RUN)


async def test_endless_manifest_is_an_artifact_error() -> None:
    bucket = published()

    def refuse(call: str, path: str) -> None:
        if (call, path) == ("read", PATHS.staged("manifest.json")):
            raise ServiceRefusedError("Supabase Storage", "is larger", status=413)

    bucket.before = refuse
    with pytest.raises(ArtifactError, match="manifest is larger than"):
        await collect(store_of(bucket), run_id=RUN)


async def test_artifact_without_the_required_archive_is_refused() -> None:
    paths = replace(PATHS, archive="adapters/job.tar.gz")
    with pytest.raises(ArtifactError, match="no archive"):
        await collect(store_of(published(), paths), run_id=RUN)


async def test_archive_of_an_earlier_attempt_is_overwritten() -> None:
    paths = replace(PATHS, archive="adapters/job.tar.gz")
    bucket = published({"adapter.tar.gz": b"new"})
    bucket.objects["adapters/job.tar.gz"] = b"old"
    await collect(store_of(bucket, paths), run_id=RUN)
    assert bucket.objects["adapters/job.tar.gz"] == b"new"


async def test_worker_that_lost_its_lease_stops_copying() -> None:
    bucket = published()

    def lost() -> None:
        raise LeaseLostError("lost")

    with pytest.raises(LeaseLostError):
        await collect(replace(store_of(bucket), require_lease=lost), run_id=RUN)
    assert not any(name.startswith("user/") for name in bucket.objects)
