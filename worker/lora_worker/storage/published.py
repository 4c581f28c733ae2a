"""Reads the manifest of a settled run from the folder of its verified files."""

from __future__ import annotations

from uuid import UUID

from lora_contract.protocol import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest
from lora_worker.errors import ArtifactError
from lora_worker.storage.artifact_paths import ArtifactPaths
from lora_worker.storage.manifests import parse_manifest
from lora_worker.storage.objects import Storage


async def read_manifest(storage: Storage, bucket: str, paths: ArtifactPaths, run_id: UUID) -> Manifest:
    """Return the manifest of a run whose artifact was verified.

    Raises:
        ArtifactError: it is not there any more, or it is damaged.
        ServiceError: Storage did not answer.
    """
    content = await storage.read(bucket, paths.final(MANIFEST_NAME), max_bytes=MAX_MANIFEST_BYTES)
    if content is None:
        raise ArtifactError("The manifest of the adapter is not in the storage any more: its files were removed.")
    return parse_manifest(content, run_id)
