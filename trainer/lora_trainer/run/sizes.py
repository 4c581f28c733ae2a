"""That nothing which the trainer writes is larger than what reads it: the worker, RunPod, the database."""

from __future__ import annotations

import json
from typing import TypeVar

from lora_contract.bounds import spread
from lora_contract.protocol import (
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_UPLOAD_REQUEST_BYTES,
    ArtifactFile,
    Manifest,
    Point,
    Progress,
    Result,
)
from lora_trainer.errors import ArtifactTooLargeError

_Message = TypeVar("_Message", Progress, Result)


def fit_message(message: _Message) -> _Message:
    """The progress or result with so much of its curve as RunPod takes; its other parts are bounded by their types."""
    while message.points and _size(message) > MAX_MESSAGE_BYTES:
        message = message.model_copy(update={"points": _half(message.points)})
    return message


def _size(message: Progress | Result) -> int:
    # As RunPod's SDK may write it, which is the longest way: each character beyond ASCII in six or twelve.
    return len(json.dumps(message.model_dump(mode="json", exclude_none=True)))


def encode_manifest(manifest: Manifest) -> tuple[Manifest, bytes]:
    """The manifest as it is stored, with so much of its curve as the worker reads, and the manifest that this is.

    Raises:
        ArtifactTooLargeError: without any of its curve it is still larger.
    """
    while len(content := manifest.model_dump_json(exclude_none=True).encode()) > MAX_MANIFEST_BYTES:
        if not manifest.points:
            raise ArtifactTooLargeError(
                f"The artifact's manifest takes {len(content)} bytes; the worker reads {MAX_MANIFEST_BYTES}."
            )
        manifest = manifest.model_copy(update={"points": _half(manifest.points)})
    return manifest, content


def _half(points: list[Point]) -> list[Point]:
    return spread(points, max(len(points) // 2, 2)) if len(points) > 2 else []


def check_files(files: list[ArtifactFile]) -> None:
    """See that the list of an artifact's files is one that the database takes.

    Raises:
        ArtifactTooLargeError: there are too many, or their names are too long.
    """
    if len(files) > MAX_FILES:
        raise ArtifactTooLargeError(f"The artifact has {len(files)} files; {MAX_FILES} can be published.")
    # As the database writes it.
    size = len(json.dumps([file.model_dump() for file in files], ensure_ascii=False).encode())
    if size > MAX_UPLOAD_REQUEST_BYTES:
        raise ArtifactTooLargeError(
            f"The list of the artifact's files takes {size} bytes; the database takes {MAX_UPLOAD_REQUEST_BYTES}."
        )
