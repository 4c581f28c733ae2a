"""Copies a trainer's uploaded files to their final place, and verifies the copies.

A trainer's upload URLs stay valid for hours, even after the run has ended, so the files behind them can still be
replaced. Therefore the URLs are valid only for a staging folder. When a run is settled, each file is copied inside
Storage to a folder for which no upload URL exists, and the copy is verified. The manifest is written there last.

Every step is idempotent. If a worker dies in the middle, the manifest in the staging folder is still there, and the
next worker continues from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from lora_contract.crash_points import crash_point
from lora_contract.protocol import MANIFEST_NAME, ArtifactFile, Manifest
from lora_worker.errors import ArtifactError, ObjectMissingError
from lora_worker.storage.artifact_paths import ArtifactPaths
from lora_worker.storage.manifests import check_proof, parse_manifest
from lora_worker.storage.objects import Storage
from lora_worker.storage.published import read_manifest_file


@dataclass(frozen=True, slots=True)
class ArtifactStore:
    """The bucket and paths of one run's artifact, and how its files are verified."""

    storage: Storage
    bucket: str
    paths: ArtifactPaths
    sha256_max_bytes: int
    """Files up to this size are read back and hashed. Of larger ones only the size is compared."""
    require_lease: Callable[[], None] = field(repr=False)
    """Called before each write. Raises LeaseLostError if another worker may have taken over the run."""


async def has_manifest(storage: Storage, bucket: str, paths: ArtifactPaths) -> bool:
    """Tell whether the run's artifact is complete in the staging folder, or already in its final place.

    Raises:
        ServiceError: the storage can't be read.
    """
    for path in (paths.staged(MANIFEST_NAME), paths.final(MANIFEST_NAME)):
        if await storage.size(bucket, path) is not None:
            return True
    return False


async def collect(store: ArtifactStore, *, run_id: UUID, needs_proof: bool) -> Manifest | None:
    """Move a run's artifact to its final place and verify it; returns its manifest, or None if nothing was published.

    `needs_proof`: whether the trainer must have tried the adapter on its base. An artifact that is in its final place
    already was judged by the worker that put it there.

    Raises:
        ProofMissingError: the manifest has no such proof.
        ProofRefusedError: its proof is of another adapter, or shows that nothing is applied.
        ArtifactError: the files are not those that the manifest lists.
        ServiceError: the storage did not answer; the next call continues where this one stopped.
        LeaseLostError: another worker may have taken over the run.
    """
    kept = await read_manifest_file(store.storage, store.bucket, store.paths.final(MANIFEST_NAME))
    if kept is not None:
        manifest = parse_manifest(kept, run_id)
        for file in manifest.files:
            await _verify(store, file)
        return manifest
    staged = await read_manifest_file(store.storage, store.bucket, store.paths.staged(MANIFEST_NAME))
    if staged is None:
        return None
    manifest = parse_manifest(staged, run_id)
    if needs_proof or manifest.application is not None:
        check_proof(manifest)
    for file in manifest.files:
        await _keep(store, file)
    await keep_manifest(store, manifest, staged)
    return manifest


async def keep_manifest(store: ArtifactStore, manifest: Manifest, content: bytes) -> None:
    """Write the manifest beside the verified files that it lists. This completes the artifact.

    Raises:
        ArtifactError: the job's queue requires an archive, and the manifest lists none.
        ServiceError: the storage did not accept the manifest.
        LeaseLostError: another worker may have taken over the run.
    """
    if store.paths.archive_name not in {None, *(file.path for file in manifest.files)}:
        raise ArtifactError("The training left no archive of its adapter.")
    crash_point("worker.keep.before_manifest")
    store.require_lease()
    path = store.paths.final(MANIFEST_NAME)
    await store.storage.write(store.bucket, path, content, content_type="application/json")
    crash_point("worker.keep.after_manifest")


async def _keep(store: ArtifactStore, file: ArtifactFile) -> None:
    """Copy one file to its final place, unless the same file is there already, and verify the copy."""
    storage, bucket = store.storage, store.bucket
    source, target = store.paths.staged(file.path), store.paths.final(file.path)
    # Only the hash proves that an earlier worker has copied exactly this file, so larger files are copied again.
    if file.bytes <= store.sha256_max_bytes and await _difference(store, file) is None:
        return
    size = await storage.size(bucket, source)
    if size != file.bytes:
        # The container chose the real size of the uploaded file, so it is checked before the file is copied.
        raise ArtifactError(_misfit(file, size))
    store.require_lease()
    try:
        await storage.copy(bucket, source, target)
    except ObjectMissingError:
        raise ArtifactError(_misfit(file, None)) from None
    crash_point("worker.keep.after_file")
    await _verify(store, file)


async def _verify(store: ArtifactStore, file: ArtifactFile) -> None:
    difference = await _difference(store, file)
    if difference is not None:
        raise ArtifactError(difference)


async def _difference(store: ArtifactStore, file: ArtifactFile) -> str | None:
    """Describe how the file in its final place differs from the listed one; None if no difference is found."""
    path = store.paths.final(file.path)
    size = await store.storage.size(store.bucket, path)
    if size != file.bytes:
        return _misfit(file, size)
    if file.bytes <= store.sha256_max_bytes and await _sha256(store, path) != file.sha256:
        return f"{file.name} in the storage is not the file that the training saved."
    return None


def _misfit(file: ArtifactFile, size: int | None) -> str:
    if size is None:
        return f"{file.name} is missing in the storage."
    return f"{file.name} has {size} bytes in the storage instead of {file.bytes}."


async def _sha256(store: ArtifactStore, path: str) -> str | None:
    digest = hashlib.sha256()
    try:
        async with store.storage.stream(store.bucket, path) as chunks:
            async for chunk in chunks:
                digest.update(chunk)
    except ObjectMissingError:
        return None
    return digest.hexdigest()
