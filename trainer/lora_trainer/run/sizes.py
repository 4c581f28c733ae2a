"""Keeps all that the trainer writes within the sizes that its readers take: the worker, RunPod and the database."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from lora_contract.bounds import spread
from lora_contract.protocol import (
    MAX_FILES,
    MAX_HEARTBEAT_PROGRESS_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_REPORTED_RESULT_BYTES,
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
"""Less than the limit, because the database writes small numbers in full: 0.0000001, where Python writes 1e-07.

    That makes a point a fifth larger at most.
    """

_REPORT_BYTES = MAX_REPORTED_RESULT_BYTES * 3 // 4

_LARGEST_NUMBER = 1e15
_DECIMALS = 12
"""The application's columns hold no larger number and no more decimals, and the database refuses too many digits."""


def fit_message(message: _Message) -> _Message:
    """The progress or result, with its curve thinned until RunPod takes the message.

    Its other parts need no thinning: their types limit their size, and a log takes a fifth of the message at most.
    """
    while message.points and _size(message) > MAX_MESSAGE_BYTES:
        message = message.model_copy(update={"points": _half(message.points)})
    return message


def fit_heartbeat(progress: Progress) -> dict[str, Any]:
    """The progress as JSON values for a heartbeat: with as many of its newest points as the database takes.

    Its sentence for the user is left out. The database may refuse a text, and then the heartbeat would be lost.
    """
    message = _shorten_numbers(progress.model_dump(mode="json", exclude_none=True, exclude={"message", "points"}))
    room_bytes = _HEARTBEAT_BYTES - _stored_size(message)
    points: list[Any] = []
    for point in reversed(progress.points):
        entry = _shorten_numbers(point.model_dump(mode="json", exclude_none=True))
        room_bytes -= _stored_size(entry) + len(", ")
        if room_bytes < 0:
            break
        points.append(entry)
    return {**message, "points": points[::-1]}


def fit_report(result: Result) -> dict[str, Any]:
    """The result as JSON values as `finish_run` stores it: without its manifest, which the worker reads from Storage,
    and with as much of its log and curve as the database takes.
    """
    result = result.model_copy(update={"manifest": None})
    while _stored_size(body := _storable(result)) > _REPORT_BYTES:
        if result.log:
            result = result.model_copy(update={"log": result.log[len(result.log) // 2 + 1 :]})
        elif result.points:
            result = result.model_copy(update={"points": _half(result.points)})
        elif result.summary.notes:
            result = result.model_copy(update={"summary": result.summary.model_copy(update={"notes": []})})
        else:  # what matters is how the run has ended
            return _storable(Result(run_id=result.run_id, status=result.status, error=result.error, stage=result.stage))
    return body


def _storable(result: Result) -> dict[str, Any]:
    body: dict[str, Any] = _shorten_numbers(result.model_dump(mode="json", exclude_none=True))
    return body


def _shorten_numbers(value: Any) -> Any:
    """The same JSON value, with its numbers cut to the digits that the database stores, and texts that it takes."""
    if isinstance(value, dict):
        return {key: _shorten_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shorten_numbers(item) for item in value]
    if isinstance(value, float):
        return round(max(-_LARGEST_NUMBER, min(value, _LARGEST_NUMBER)), _DECIMALS)
    if isinstance(value, str):
        # Postgres has no character 0, and JSON's lone surrogates are no characters.
        return value.replace("\0", "").encode(errors="replace").decode()
    return value


def _stored_size(value: Any) -> int:
    # The database writes JSON in UTF-8, with a space after each comma and colon, as json.dumps does.
    return len(json.dumps(value, ensure_ascii=False).encode())


def _size(message: Progress | Result) -> int:
    # RunPod's SDK may escape each character beyond ASCII, as 6 or 12 characters: count the longest form.
    return len(json.dumps(message.model_dump(mode="json", exclude_none=True)))


def encode_manifest(manifest: Manifest) -> tuple[Manifest, bytes]:
    """Thin the manifest's curve until the worker reads it. Returns the manifest and its JSON, UTF-8 encoded.

    Raises:
        ArtifactTooLargeError: it is too large even without its curve.
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
    """Make sure that the database takes the list of an artifact's files.

    Raises:
        ArtifactTooLargeError: there are too many files, or their names are too long.
    """
    if len(files) > MAX_FILES:
        raise ArtifactTooLargeError(f"The artifact has {len(files)} files; {MAX_FILES} can be published.")
    size = _stored_size([file.model_dump() for file in files])
    if size > MAX_UPLOAD_REQUEST_BYTES:
        raise ArtifactTooLargeError(
            f"The list of the artifact's files takes {size} bytes; the database takes {MAX_UPLOAD_REQUEST_BYTES}."
        )
