"""Checks what a trainer says that an artifact consists of."""

from __future__ import annotations

from uuid import UUID

from pydantic import ValidationError

from lora_contract.protocol import ADAPTER_FILES, CONTAINER_LOG_NAME, MANIFEST_NAME, Manifest
from lora_worker.errors import ArtifactError, ProofMissingError, ProofRefusedError

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


def check_proof(manifest: Manifest) -> None:
    """Make sure that the trainer has tried the very weights that the manifest lists, and that they change answers.

    Raises:
        ProofMissingError: the manifest says nothing of it, or nothing that can be read.
        ProofRefusedError: it is of another adapter, or shows that no module took it or no answer differs.
    """
    proof = manifest.application
    if proof is None:
        raise ProofMissingError("The artifact's manifest does not say that the adapter was tried on its base.")
    weights = {file.sha256 for file in manifest.files if file.path == ADAPTER_FILES[1]}
    if weights != {proof.adapter_sha256}:
        raise ProofRefusedError("The adapter that was tried on its base is not the one that was uploaded.")
    if proof.modules == 0 or proof.differing == 0 or not proof.base_unchanged:
        raise ProofRefusedError("The adapter changes nothing on its base, or changes the base itself.")
