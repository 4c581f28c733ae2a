"""The adapter's folder as one file, for whoever takes it whole."""

from __future__ import annotations

import tarfile
from pathlib import Path

_LEADING_FOLDER = "adapter"


def write_archive(folder: Path, path: Path) -> None:
    """Put everything in `folder` but the archive itself into the `.tar.gz` at `path`, under one leading folder.

    The application's deploy step takes exactly one folder off each name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != path)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:  # weights hardly compress
        for file in files:
            archive.add(file, f"{_LEADING_FOLDER}/{file.relative_to(folder).as_posix()}")
