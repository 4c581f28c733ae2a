"""Checks what a trainer says that an artifact consists of."""

from __future__ import annotations

from uuid import UUID

from pydantic import ValidationError

from lora_contract.protocol import CONTAINER_LOG_NAME, MANIFEST_NAME, Manifest
from lora_worker.errors import ArtifactError

RESERVED_NAMES = frozenset({MANIFEST_NAME, CONTAINER_LOG_NAME})
"""What the worker itself writes into a run's folder: no file of an artifact may replace it, or be replaced by it."""

_MAX_BYTES = 32 * 1024**3
"""The most bytes of all files of an artifact. Reading them back occupies one of a few slots for a long time."""


def parse_manifest(content: bytes, run_id: UUID) -> Manifest:
    """Check and parse the manifest of a run.

    Raises:
        ArtifactError: it is damaged, another run's, empty, too large, or lists a file twice.
    """
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError:
        raise ArtifactError("The artifact's manifest is damaged.") from None
    paths = [file.path for file in manifest.files]
    if manifest.run_id != str(run_id) or not paths:
        raise ArtifactError("The artifact's manifest belongs to another run or lists no file.")
    if sum(file.bytes for file in manifest.files) > _MAX_BYTES:
        raise ArtifactError("The artifact's manifest lists more bytes than an adapter has.")
    if len(set(paths)) < len(paths) or not RESERVED_NAMES.isdisjoint(paths):
        raise ArtifactError("The artifact's manifest lists a file twice, or under a name that is the worker's own.")
    return manifest
