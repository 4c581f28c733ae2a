"""The folder of an export: what is finished in it, and how an export that was killed goes on.

Each file gets its name when it is whole and on the disk; its size and sha256 are then noted in `export.json`. An export
of the same inputs goes on behind what is noted. One of other inputs (another adapter, base or revision) removes what is
noted, and begins anew. A folder with files of others is refused.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout
from pydantic import ValidationError

from lora_contract.exports import EXPORT_RECORD_NAME, MAX_EXPORT_RECORD_BYTES, ExportedFile, ExportRecord
from lora_trainer.errors import DiskFullError, ExportRefusedError
from lora_trainer.run.files import sha256_of, write_atomically
from lora_trainer.run.volume import naming_full_disks

_LOCK_NAME = ".export.lock"
_PART_END = ".part"
_SPARE_BYTES = 512 << 20
"""What an export leaves free on the disk, for the record and for others who write there."""


class ExportFolder:
    """The folder into which one export writes. `open_folder` makes it."""

    def __init__(self, path: Path, record: ExportRecord) -> None:
        self.path = path
        self.record = record

    def has(self, name: str) -> bool:
        """Whether a file is noted. `open_folder` has made sure that it is there and right."""
        return any(file.name == name for file in self.record.files)

    def write(self, name: str, fill: Callable[[HashedFile], None]) -> None:
        """Write a file by `fill`, give it its name, and note it.

        Raises:
            DiskFullError: there is no room for it.
        """
        with naming_full_disks(self.path):
            part = self._part_of(name)
            with part.open("wb") as file:
                hashed = HashedFile(file)
                fill(hashed)
                file.flush()
                os.fsync(file.fileno())
            self._give_name(part, ExportedFile(name=name, bytes=hashed.size, sha256=hashed.sha256))

    def write_small(self, name: str, content: bytes) -> None:
        """Write a file with this content, unless it is there."""
        if not self.has(name):
            self.write(name, lambda file: file.write(content))

    def write_by_path(self, name: str, fill: Callable[[Path], None]) -> None:
        """Write a file by a library that opens it itself; `fill` gets the path. Otherwise as `write`."""
        with naming_full_disks(self.path):
            part = self._part_of(name)
            fill(part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            self._give_name(part, ExportedFile(name=name, bytes=part.stat().st_size, sha256=sha256_of(part)))

    def _part_of(self, name: str) -> Path:
        return self.path / f".{name}{_PART_END}"

    def _give_name(self, part: Path, file: ExportedFile) -> None:
        # Noted first: what is noted and has not its name yet is found missing, and written again. The other way round,
        # a file could be left that nobody knows of, and that a loader takes.
        self.record.files = [*(old for old in self.record.files if old.name != file.name), file]
        self._save()
        part.rename(self.path / file.name)

    def finish(self) -> ExportRecord:
        """Note that the export is complete."""
        self.record.complete = True
        with naming_full_disks(self.path):
            self._save()
        return self.record

    def check_room(self, sizes: dict[str, int]) -> None:
        """Make sure that the disk has room for the files that are missing; `sizes` has the bytes of all.

        Raises:
            DiskFullError: it has not.
        """
        missing = sum(size for name, size in sizes.items() if not self.has(name))
        free = shutil.disk_usage(self.path).free
        if missing + _SPARE_BYTES > free:
            raise DiskFullError(
                f"The export needs {missing / 1e9:,.1f} GB more in {self.path}, but {free / 1e9:,.1f} GB are free "
                f"there, of which {_SPARE_BYTES / 1e9:,.1f} GB are left for others.",
                "Make room there, or choose a folder on a larger disk.",
            )

    def _save(self) -> None:
        write_atomically(self.path / EXPORT_RECORD_NAME, self.record.model_dump_json(indent=2))


class HashedFile:
    """An open file that counts and sums what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.size = 0
        self._file = file
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of all that was written, as hexadecimal digits."""
        return self._digest.hexdigest()

    def write(self, content: bytes | memoryview) -> None:
        """Append some bytes."""
        self._file.write(content)
        self._digest.update(content)
        self.size += len(content)


@contextmanager
def open_folder(path: Path, wanted: ExportRecord) -> Iterator[ExportFolder]:
    """While this context is open, no other export writes into `path`. `wanted` is the record of an export not begun.

    Raises:
        ExportRefusedError: the folder holds something else, can't be used, or another export writes into it.
        DiskFullError: the disk is full.
    """
    try:
        with naming_full_disks(path):
            path.mkdir(parents=True, exist_ok=True)
            found = _read_record(path)
            if found is None and (other := _something_else(path)):
                raise ExportRefusedError(
                    f"{path} holds {other!r:.100} and no export.", "Choose an empty folder, or one that does not exist."
                )
            lock = FileLock(path / _LOCK_NAME, timeout=0)
            with lock:
                record = _go_on(path, found, wanted)
                # So that the folder is known as an export's before its first file.
                write_atomically(path / EXPORT_RECORD_NAME, record.model_dump_json(indent=2))
                yield ExportFolder(path, record)
    except Timeout:
        raise ExportRefusedError(
            f"Another export writes into {path}.", "Wait for it, or choose another folder."
        ) from None
    except PermissionError:
        raise ExportRefusedError(f"{path} can't be written.", "Choose another folder.") from None
    except (FileExistsError, NotADirectoryError):
        raise ExportRefusedError(f"{path} is no folder.", "Choose another folder.") from None


def _read_record(path: Path) -> ExportRecord | None:
    try:
        with (path / EXPORT_RECORD_NAME).open("rb") as file:
            return ExportRecord.model_validate_json(file.read(MAX_EXPORT_RECORD_BYTES))
    except (FileNotFoundError, ValidationError):
        return None


def _something_else(path: Path) -> str | None:
    names = (file.name for file in path.iterdir())
    return next((name for name in names if name != _LOCK_NAME and not name.endswith(_PART_END)), None)


def _go_on(path: Path, found: ExportRecord | None, wanted: ExportRecord) -> ExportRecord:
    """The record with which to go on. Files that it does not need any more are removed."""
    for part in [*path.glob(f".*{_PART_END}"), *path.glob(f"{EXPORT_RECORD_NAME}.*{_PART_END}")]:
        part.unlink()
    if found is None:
        return wanted
    if found.inputs_sha256 != wanted.inputs_sha256:
        for file in found.files:
            (path / file.name).unlink(missing_ok=True)
        return wanted
    right = [file for file in found.files if _is_right(path / file.name, file)]
    return found.model_copy(update={"files": right, "complete": found.complete and len(right) == len(found.files)})


def _is_right(path: Path, file: ExportedFile) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes and sha256_of(path) == file.sha256
