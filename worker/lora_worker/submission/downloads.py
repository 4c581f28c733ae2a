"""Fetches the verified adapter of a job: every file that its manifest lists, with the size and the sha256 named there.

A file gets its name only when it is complete and right. Until then its bytes are in a hidden file beside it, which ends
with `.part` and from which a later call goes on. A file of that name with another content is never replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Literal
from uuid import UUID

from lora_contract.protocol import ArtifactFile, Manifest
from lora_worker.database.submission_rows import PublishedRun
from lora_worker.errors import ArgumentError, ArtifactError, ServiceRefusedError
from lora_worker.services import Services
from lora_worker.storage.artifact_paths import ArtifactPaths
from lora_worker.storage.published import read_manifest

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Fetched:
    """One file of the adapter in its folder, and whether it was fetched now or was there before."""

    path: str
    """Relative to the folder."""
    bytes: int
    sha256: str
    status: Literal["downloaded", "present"]


@dataclass(frozen=True, slots=True)
class Download:
    """The files of one job's adapter on this machine."""

    job_id: UUID
    run_id: UUID
    folder: Path
    files: tuple[Fetched, ...]


async def download(
    services: Services, job_id: UUID, folder: Path, say: Callable[[str], None] = lambda _: None
) -> Download:
    """Fetch the adapter of a job into a folder, which is made where it is missing; `say` is told of each file.

    Raises:
        ArgumentError: the job has no adapter, or something in the folder is in the way.
        ArtifactError: a stored file is not the one that was verified.
        ServiceError: Supabase did not answer; the next call goes on with what is there.
    """
    found = await find_published(services, job_id)
    run_id, paths, manifest = found.run_id, found.paths, found.manifest
    wanted = [(file, place_in(folder, file.path)) for file in manifest.files]
    _make_room(folder, wanted)
    fetched = []
    for file, place in wanted:
        status = await _fetch(services, paths, file, place)
        say(f"{file.path}: {file.bytes:,} bytes, {'complete' if status == 'downloaded' else 'there already'}")
        fetched.append(Fetched(file.path, file.bytes, file.sha256, status))
    return Download(job_id, run_id, folder, tuple(fetched))


@dataclass(frozen=True, slots=True)
class Published:
    """A job's verified files in the bucket: where they are, and the manifest that lists them."""

    run_id: UUID
    paths: ArtifactPaths
    manifest: Manifest


async def find_published(services: Services, job_id: UUID) -> Published:
    """Find the files of a completed job.

    Raises: as `download`.
    """
    run = await _find_run(services, job_id)
    run_id, paths = run["run_id"], _paths_of(run)
    if run_id is None or paths is None:
        raise ArgumentError(f"JOB: {_no_artifact(run)}")
    manifest = await read_manifest(services.storage, services.settings.artifacts_bucket, paths, run_id)
    return Published(run_id, paths, manifest)


async def _find_run(services: Services, job_id: UUID) -> PublishedRun:
    run = await services.queue.training_published_run(job_id)
    if run is None:
        raise ArgumentError(f"JOB: there is no job {job_id}")
    return run


def _no_artifact(run: PublishedRun) -> str:
    if run["status"] == "completed":
        return f"job {run['job_id']} was completed by another program than this worker, and has no manifest to check by"
    return f"job {run['job_id']} is {run['status']}: only a completed one has an adapter"


def _paths_of(run: PublishedRun) -> ArtifactPaths | None:
    if run["run_id"] is None or run["user_id"] is None:
        return None
    return ArtifactPaths.of_run(queue=run["queue"], job_id=run["job_id"], user_id=run["user_id"], run_id=run["run_id"])


def place_in(folder: Path, path: str) -> Path:
    """Return where a listed file goes. It is always inside the folder, also where that has links to elsewhere.

    Raises:
        ArtifactError: it would be outside.
    """
    root = folder.resolve()
    place = root.joinpath(path)
    if not place.parent.resolve().is_relative_to(root) or place.name in {"", ".", ".."}:
        raise ArtifactError(f"The manifest lists {path!r}, which would be written outside of {folder}.")
    return place


def _make_room(folder: Path, wanted: list[tuple[ArtifactFile, Path]]) -> None:
    """Make the folders, and check that the disk can hold what is missing."""
    try:
        for _, place in wanted:
            place.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ArgumentError(f"DIR: {folder} can't be used ({error.strerror or type(error).__name__})") from None
    missing = sum(
        file.bytes - min(_size_of(_part_of(place, file)), file.bytes) for file, place in wanted if not place.exists()
    )
    if missing > free:
        raise ArgumentError(f"DIR: {folder} has room for {free:,} bytes, and {missing:,} are missing")


async def _fetch(
    services: Services, paths: ArtifactPaths, file: ArtifactFile, place: Path
) -> Literal["downloaded", "present"]:
    part = _part_of(place, file)
    try:
        if await asyncio.to_thread(_is_there, place, part, file):
            return "present"
        await _complete(services, paths.final(file.path), file, part)
        await asyncio.to_thread(_give_name, part, place, file)
    except OSError as error:
        raise ArgumentError(f"DIR: {place} can't be written ({error.strerror or type(error).__name__})") from None
    return "downloaded"


def _is_there(place: Path, part: Path, file: ArtifactFile) -> bool:
    """Tell whether the file is there already.

    Raises:
        ArgumentError: something else is in its place.
    """
    if part.is_symlink():
        raise ArgumentError(f"DIR: {part} is a link: remove it")
    if not place.is_symlink() and not place.exists():
        return False
    if place.is_file() and not place.is_symlink() and _is_file(place, file):
        return True
    raise ArgumentError(f"DIR: {place} is there and is another file: move it away, or choose another folder")


def _give_name(part: Path, place: Path, file: ArtifactFile) -> None:
    if not _is_file(part, file):
        part.unlink()
        raise ArtifactError(
            f"What came for {file.path} is not the file that was verified, and was removed here: fetch it once more; "
            "if that happens again, it was changed in the storage."
        )
    part.replace(place)


async def _complete(services: Services, path: str, file: ArtifactFile, part: Path) -> None:
    """Append what the part lacks. No more bytes are written than the manifest lists."""
    bucket, have = services.settings.artifacts_bucket, _begun(part, file)
    if have and have == file.bytes:
        return
    try:
        async with services.storage.stream(bucket, path, start=have) as chunks:
            await _append(part, chunks, file, most=file.bytes - have)
    except ServiceRefusedError as error:
        if error.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        _discard(part)
        async with services.storage.stream(bucket, path) as chunks:
            await _append(part, chunks, file, most=file.bytes)


def _begun(part: Path, file: ArtifactFile) -> int:
    """Return how many bytes of a file are here. A part that is too long is none of it."""
    have = _size_of(part)
    if have <= file.bytes:
        return have
    _discard(part)
    return 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)


async def _append(part: Path, chunks: AsyncIterator[bytes], file: ArtifactFile, *, most: int) -> None:
    with part.open("ab") as target:
        async for chunk in chunks:
            if len(chunk) > most:
                raise ArtifactError(f"{file.path} in the storage is larger than its manifest says.")
            await asyncio.to_thread(target.write, chunk)
            most -= len(chunk)


def _part_of(place: Path, file: ArtifactFile) -> Path:
    # With the content in its name, no part of another job's file is continued.
    return place.with_name(f".{place.name}.{file.sha256[:12]}.part")


def _size_of(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _is_file(path: Path, file: ArtifactFile) -> bool:
    """Tell whether a file is the one that the manifest lists."""
    if _size_of(path) != file.bytes:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == file.sha256
