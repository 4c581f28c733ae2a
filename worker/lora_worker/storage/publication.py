"""From what a trainer uploaded to what nothing can change any more.

A trainer's upload URLs go on opening their places for hours, whatever becomes of the run. So they open a staging
folder alone. Settling copies each file inside Storage to where no URL leads, verifies the copy, and writes the manifest
beside it last. Each step may be repeated: a worker that dies in the middle leaves the staged manifest, by which the
next one goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from pydantic import ValidationError

from lora_contract.crash_points import crash_point
from lora_contract.protocol import MANIFEST_NAME, MAX_MANIFEST_BYTES, ArtifactFile, Manifest
from lora_worker.errors import ArtifactError, ObjectMissingError, ServiceRefusedError
from lora_worker.storage.objects import Storage
from lora_worker.storage.places import Places

_MAX_BYTES = 32 * 1024**3
"""All files of an artifact together: each is copied and read, and holds one of few places meanwhile."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """A run's places in the bucket, and how its files are verified."""

    storage: Storage
    bucket: str
    places: Places
    sha256_max_bytes: int
    """Files up to this size are read back and hashed; of larger ones only the size is looked at."""
    require_lease: Callable[[], None] = field(repr=False)
    """Raises LeaseLostError where this worker may not write for the run any more."""


async def has_manifest(storage: Storage, bucket: str, places: Places) -> bool:
    """Whether the run's trainer has published, or a worker has kept what it published.

    Raises:
        ServiceError: the storage can't be read.
    """
    for path in (places.staged(MANIFEST_NAME), places.at(MANIFEST_NAME)):
        if await storage.size(bucket, path) is not None:
            return True
    return False


async def collect(shelf: Shelf, *, run_id: UUID) -> Manifest | None:
    """The manifest of a run whose files are verified and kept; None where nothing was published.

    Raises:
        ArtifactError: what was published is not what its manifest says.
        ServiceError: the storage did not answer; the next try goes on.
        LeaseLostError: the run is another worker's now.
    """
    kept = await _read_manifest(shelf, shelf.places.at(MANIFEST_NAME))
    if kept is not None:
        manifest = _parse_manifest(kept, run_id)
        for file in manifest.files:
            await _verify(shelf, file)
        return manifest
    staged = await _read_manifest(shelf, shelf.places.staged(MANIFEST_NAME))
    if staged is None:
        return None
    manifest = _parse_manifest(staged, run_id)
    for file in manifest.files:
        await _keep(shelf, file)
    await keep_manifest(shelf, manifest, staged)
    return manifest


async def keep_manifest(shelf: Shelf, manifest: Manifest, content: bytes) -> None:
    """Write the manifest beside the files that it lists, which are kept and verified: the artifact is whole.

    Raises:
        ArtifactError: the archive is missing that the job's queue wants.
        ServiceError: the storage did not take it.
        LeaseLostError: the run is another worker's now.
    """
    if shelf.places.archive_name not in {None, *(file.path for file in manifest.files)}:
        raise ArtifactError("The training left no archive of its adapter.")
    crash_point("worker.keep.before_manifest")
    shelf.require_lease()
    path = shelf.places.at(MANIFEST_NAME)
    await shelf.storage.write(shelf.bucket, path, content, content_type="application/json")
    crash_point("worker.keep.after_manifest")


async def _read_manifest(shelf: Shelf, path: str) -> bytes | None:
    try:
        return await shelf.storage.read(shelf.bucket, path, max_bytes=MAX_MANIFEST_BYTES)
    except ServiceRefusedError as error:
        if error.status != 413:
            raise
        raise ArtifactError(f"The artifact's manifest is larger than {MAX_MANIFEST_BYTES} bytes.") from None


def _parse_manifest(content: bytes, run_id: UUID) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError:
        raise ArtifactError("The artifact's manifest is damaged.") from None
    paths = [file.path for file in manifest.files]
    if manifest.run_id != str(run_id) or not paths:
        raise ArtifactError("The artifact's manifest belongs to another run or lists no file.")
    if sum(file.bytes for file in manifest.files) > _MAX_BYTES:
        raise ArtifactError("The artifact's manifest lists more bytes than an adapter has.")
    if len(set(paths)) < len(paths) or MANIFEST_NAME in paths:
        raise ArtifactError("The artifact's manifest lists a file twice, or itself.")
    return manifest


async def _keep(shelf: Shelf, file: ArtifactFile) -> None:
    """Copy one file to its place, unless it is there already, and verify the copy."""
    storage, bucket = shelf.storage, shelf.bucket
    source, target = shelf.places.staged(file.path), shelf.places.at(file.path)
    # Only a hash tells that an earlier worker has copied this very file.
    if file.bytes <= shelf.sha256_max_bytes and await _difference(shelf, file) is None:
        return
    size = await storage.size(bucket, source)
    if size != file.bytes:
        # Before it is copied: its size is the container's choice.
        raise ArtifactError(_misfit(file, size))
    shelf.require_lease()
    try:
        await storage.copy(bucket, source, target)
    except ObjectMissingError:
        raise ArtifactError(_misfit(file, None)) from None
    crash_point("worker.keep.after_file")
    await _verify(shelf, file)


async def _verify(shelf: Shelf, file: ArtifactFile) -> None:
    difference = await _difference(shelf, file)
    if difference is not None:
        raise ArtifactError(difference)


async def _difference(shelf: Shelf, file: ArtifactFile) -> str | None:
    """In which way what is kept is not the listed file; None where it is, as far as is looked at."""
    path = shelf.places.at(file.path)
    size = await shelf.storage.size(shelf.bucket, path)
    if size != file.bytes:
        return _misfit(file, size)
    if file.bytes <= shelf.sha256_max_bytes and await _sha256(shelf, path) != file.sha256:
        return f"{file.name} in the storage is not the file that the training saved."
    return None


def _misfit(file: ArtifactFile, size: int | None) -> str:
    if size is None:
        return f"{file.name} is missing in the storage."
    return f"{file.name} has {size} bytes in the storage instead of {file.bytes}."


async def _sha256(shelf: Shelf, path: str) -> str | None:
    digest = hashlib.sha256()
    try:
        async with shelf.storage.stream(shelf.bucket, path) as chunks:
            async for chunk in chunks:
                digest.update(chunk)
    except ObjectMissingError:
        return None
    return digest.hexdigest()
