"""A settled artifact can't be changed: neither by an upload URL nor by a worker that dies during the copy."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from lora_contract.application import Application
from lora_contract.protocol import ArtifactFile, Manifest
from lora_worker.errors import (
    ArtifactError,
    LeaseLostError,
    ProofMissingError,
    ProofRefusedError,
    ServiceRefusedError,
    ServiceUnavailableError,
)
from lora_worker.storage.publication import collect, has_manifest
from sandbox.standin_proof import applied
from tests.unit.artifact_stores import PATHS, RUN_ID, MemoryBucket, store_of

RUN = UUID(RUN_ID)
FILES = {"adapter_model.safetensors": b"w" * 5000, "adapter_config.json": b"{}"}
PROOF = Application.model_validate(applied(hashlib.sha256(FILES["adapter_model.safetensors"]).hexdigest()))
KEPT = {f"user/run/{name}": content for name, content in FILES.items()}


def listed(contents: dict[str, bytes], **changes: Any) -> Manifest:
    entries = [
        ArtifactFile(name=name, path=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in contents.items()
    ]
    return Manifest(job_id="job", run_id=RUN_ID, files=entries, application=PROOF).model_copy(update=changes)


def published(files: dict[str, bytes] = FILES, manifest: Manifest | None = None) -> MemoryBucket:
    bucket = MemoryBucket()
    bucket.objects = {PATHS.staged(name): content for name, content in files.items()}
    bucket.objects[PATHS.staged("manifest.json")] = (manifest or listed(files)).model_dump_json().encode()
    return bucket


async def test_uploads_are_copied_to_final_paths_with_the_manifest_last() -> None:
    bucket = published()
    staged = bucket.objects[PATHS.staged("manifest.json")]
    assert await collect(store_of(bucket), run_id=RUN, needs_proof=True) == listed(FILES)
    assert {name: bucket.objects[name] for name in KEPT} == KEPT
    assert bucket.objects["user/run/manifest.json"] == staged
    assert bucket.calls[-1] == ("write", "user/run/manifest.json")


async def test_without_a_published_manifest_nothing_is_copied() -> None:
    assert await collect(store_of(MemoryBucket()), run_id=RUN, needs_proof=True) is None
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
        await collect(store_of(bucket), run_id=RUN, needs_proof=True)
    assert "user/run/manifest.json" not in bucket.objects


async def test_upload_after_the_copy_does_not_change_the_copy() -> None:
    bucket = published()
    weights = PATHS.staged("adapter_model.safetensors")

    def overwrite(call: str, path: str) -> None:
        if (call, path) == ("stream", "user/run/adapter_model.safetensors"):
            bucket.objects[weights] = b"x" * 5000

    bucket.before = overwrite
    assert await collect(store_of(bucket), run_id=RUN, needs_proof=True) is not None
    assert bucket.objects["user/run/adapter_model.safetensors"] == FILES["adapter_model.safetensors"]


@pytest.mark.parametrize(("fatal", "visit"), [("copy", 1), ("copy", 2), ("stream", 1), ("stream", 2), ("write", 1)])
async def test_interrupted_copy_is_resumed_without_copying_files_twice(fatal: str, visit: int) -> None:
    bucket, visits = published(), iter(range(1, 10))

    def die(call: str, path: str) -> None:
        if call == fatal and next(visits) == visit:
            raise ServiceUnavailableError("Supabase Storage", "is away")

    bucket.before = die
    with pytest.raises(ServiceUnavailableError):
        await collect(store_of(bucket), run_id=RUN, needs_proof=True)
    copied = {PATHS.staged(name) for name in FILES if f"user/run/{name}" in bucket.objects}
    bucket.before, bucket.calls = lambda call, path: None, []
    assert await collect(store_of(bucket), run_id=RUN, needs_proof=True) == listed(FILES)
    assert not copied & {path for call, path in bucket.calls if call == "copy"}
    assert {name: bucket.objects[name] for name in KEPT} == KEPT


async def test_copied_files_are_not_replaced_by_later_uploads() -> None:
    bucket = published()
    await collect(store_of(bucket), run_id=RUN, needs_proof=True)
    other = {"adapter_model.safetensors": b"another"}
    bucket.objects |= published(other).objects
    assert await collect(store_of(bucket), run_id=RUN, needs_proof=True) == listed(FILES)
    assert {name: bucket.objects[name] for name in KEPT} == KEPT


async def test_file_too_large_to_hash_is_always_copied() -> None:
    bucket = published()
    bucket.objects |= {name: b"x" * len(content) for name, content in KEPT.items()}
    await collect(store_of(bucket, sha256_max_bytes=0), run_id=RUN, needs_proof=True)
    assert {name: bucket.objects[name] for name in KEPT} == KEPT


async def test_an_upload_of_another_size_is_refused_before_it_is_copied() -> None:
    bucket = published()
    bucket.objects[PATHS.staged("adapter_model.safetensors")] = b"x" * 100_000
    with pytest.raises(ArtifactError, match="has 100000 bytes in the storage instead of 5000"):
        await collect(store_of(bucket), run_id=RUN, needs_proof=True)
    assert ("copy", PATHS.staged("adapter_model.safetensors")) not in bucket.calls


async def test_a_missing_file_is_named() -> None:
    bucket = published()
    del bucket.objects[PATHS.staged("adapter_config.json")]
    with pytest.raises(ArtifactError, match=r"adapter_config\.json is missing"):
        await collect(store_of(bucket), run_id=RUN, needs_proof=True)


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
        await collect(store_of(published(manifest=manifest)), run_id=RUN, needs_proof=True)


async def test_endless_manifest_is_an_artifact_error() -> None:
    bucket = published()

    def refuse(call: str, path: str) -> None:
        if (call, path) == ("read", PATHS.staged("manifest.json")):
            raise ServiceRefusedError("Supabase Storage", "is larger", status=413)

    bucket.before = refuse
    with pytest.raises(ArtifactError, match="manifest is larger than"):
        await collect(store_of(bucket), run_id=RUN, needs_proof=True)


async def test_artifact_without_the_required_archive_is_refused() -> None:
    paths = replace(PATHS, archive="adapters/job.tar.gz")
    with pytest.raises(ArtifactError, match="no archive"):
        await collect(store_of(published(), paths), run_id=RUN, needs_proof=True)


async def test_archive_of_an_earlier_attempt_is_overwritten() -> None:
    paths = replace(PATHS, archive="adapters/job.tar.gz")
    bucket = published({**FILES, "adapter.tar.gz": b"new"})
    bucket.objects["adapters/job.tar.gz"] = b"old"
    await collect(store_of(bucket, paths), run_id=RUN, needs_proof=True)
    assert bucket.objects["adapters/job.tar.gz"] == b"new"


async def test_worker_that_lost_its_lease_stops_copying() -> None:
    bucket = published()

    def lost() -> None:
        raise LeaseLostError("lost")

    with pytest.raises(LeaseLostError):
        await collect(replace(store_of(bucket), require_lease=lost), run_id=RUN, needs_proof=True)
    assert not any(name.startswith("user/") for name in bucket.objects)


@pytest.mark.parametrize(
    ("proof", "error"),
    [
        (None, ProofMissingError),
        (PROOF.model_copy(update={"adapter_sha256": "0" * 64}), ProofRefusedError),
        (PROOF.model_copy(update={"modules": 0}), ProofRefusedError),
        (PROOF.model_copy(update={"differing": 0}), ProofRefusedError),
        (PROOF.model_copy(update={"base_unchanged": False}), ProofRefusedError),
    ],
)
async def test_manifest_without_a_proof_of_its_own_adapter_is_refused(
    proof: Application | None, error: type[ArtifactError]
) -> None:
    bucket = published(manifest=listed(FILES, application=proof))
    with pytest.raises(error):
        await collect(store_of(bucket), run_id=RUN, needs_proof=True)
    assert not any(call in {"copy", "write"} for call, _ in bucket.calls), "nothing was kept"


async def test_proof_that_can_not_be_read_counts_as_missing() -> None:
    bucket = published()
    manifest = json.loads(bucket.objects[PATHS.staged("manifest.json")])
    manifest["application"]["modules"] = "many"
    bucket.objects[PATHS.staged("manifest.json")] = json.dumps(manifest).encode()
    with pytest.raises(ProofMissingError):
        await collect(store_of(bucket), run_id=RUN, needs_proof=True)


async def test_run_that_an_earlier_worker_launched_needs_no_proof() -> None:
    bucket = published(manifest=listed(FILES, application=None))
    assert await collect(store_of(bucket), run_id=RUN, needs_proof=False) is not None
    refuted = listed(FILES, application=PROOF.model_copy(update={"differing": 0}))
    with pytest.raises(ProofRefusedError):
        await collect(store_of(published(manifest=refuted)), run_id=RUN, needs_proof=False)


async def test_adapter_that_is_kept_is_not_asked_for_its_proof_again() -> None:
    bucket = published(manifest=listed(FILES, application=None))
    await collect(store_of(bucket), run_id=RUN, needs_proof=False)
    assert await collect(store_of(bucket), run_id=RUN, needs_proof=True) is not None
