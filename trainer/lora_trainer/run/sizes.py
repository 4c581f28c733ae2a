"""That nothing which the trainer writes is larger than what reads it: the worker, RunPod, the database."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from lora_contract.bounds import spread
from lora_contract.protocol import (
    MAX_FILES,
    MAX_HEARTBEAT_PROGRESS_BYTES,
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

_HEARTBEAT_BYTES = MAX_HEARTBEAT_PROGRESS_BYTES * 3 // 4
"""The database writes small numbers out: 0.0000001 where Python writes 1e-07. A point grows by a fifth at most."""

_LARGEST_NUMBER = 1e15
_DECIMALS = 12
"""No column of the application holds a larger number or more decimals. The database stores none of too many digits."""


def fit_message(message: _Message) -> _Message:
    """The progress or result with so much of its curve as RunPod takes; its other parts are bounded by their types."""
    while message.points and _size(message) > MAX_MESSAGE_BYTES:
        message = message.model_copy(update={"points": _half(message.points)})
    return message


def fit_heartbeat(progress: Progress) -> dict[str, Any]:
    """The progress as it goes with a heartbeat, as JSON: with the newest points of its curve that the database takes.

    Its sentence for the user is left out: the database may refuse a text, and the heartbeat counts more.
    """
    message = _plain(progress.model_dump(mode="json", exclude_none=True, exclude={"message", "points"}))
    room_bytes = _HEARTBEAT_BYTES - _stored_size(message)
    points: list[Any] = []
    for point in reversed(progress.points):
        entry = _plain(point.model_dump(mode="json", exclude_none=True))
        room_bytes -= _stored_size(entry) + len(", ")
        if room_bytes < 0:
            break
        points.append(entry)
    return {**message, "points": points[::-1]}


def _plain(value: Any) -> Any:
    """JSON whose numbers have so few digits that the database stores them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return round(max(-_LARGEST_NUMBER, min(value, _LARGEST_NUMBER)), _DECIMALS)
    return value


def _stored_size(value: Any) -> int:
    # As the database writes it: beyond ASCII in UTF-8, with a blank after each comma and colon.
    return len(json.dumps(value, ensure_ascii=False).encode())


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
    size = _stored_size([file.model_dump() for file in files])
    if size > MAX_UPLOAD_REQUEST_BYTES:
        raise ArtifactTooLargeError(
            f"The list of the artifact's files takes {size} bytes; the database takes {MAX_UPLOAD_REQUEST_BYTES}."
        )
