"""Reads the manifest of a run: as a file that may be too large, or of a settled run, checked."""

from __future__ import annotations

from uuid import UUID

from lora_contract.protocol import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest
from lora_worker.errors import ArtifactError, ServiceRefusedError
from lora_worker.storage.artifact_paths import ArtifactPaths
from lora_worker.storage.manifests import parse_manifest
from lora_worker.storage.objects import Storage


async def read_manifest_file(storage: Storage, bucket: str, path: str) -> bytes | None:
    """Return a manifest as it lies at a path; None if there is none.

    Raises:
        ArtifactError: it is larger than any manifest.
        ServiceError: Storage did not answer.
    """
    try:
        return await storage.read(bucket, path, max_bytes=MAX_MANIFEST_BYTES)
    except ServiceRefusedError as error:
        if error.status != 413:
            raise
        raise ArtifactError(f"The artifact's manifest is larger than {MAX_MANIFEST_BYTES} bytes.") from None


async def read_manifest(storage: Storage, bucket: str, paths: ArtifactPaths, run_id: UUID) -> Manifest:
    """Return the manifest of a run whose artifact was verified.

    Raises:
        ArtifactError: it is not there any more, damaged or too large.
        ServiceError: Storage did not answer.
    """
    content = await read_manifest_file(storage, bucket, paths.final(MANIFEST_NAME))
    if content is None:
        raise ArtifactError("The manifest of the adapter is not in the storage any more: its files were removed.")
    return parse_manifest(content, run_id)
