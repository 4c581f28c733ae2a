"""Packs the artifact's folder into one archive file, for applications that download it as a whole."""

from __future__ import annotations

import tarfile
from pathlib import Path

_LEADING_FOLDER = "adapter"


def write_archive(folder: Path, path: Path) -> None:
    """Pack all files of `folder`, except the archive itself, into the `.tar.gz` at `path`.

    All names get one leading folder, because the application's deploy step strips exactly one from each name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != path)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:  # weights hardly get smaller by compression
        for file in files:
            archive.add(file, f"{_LEADING_FOLDER}/{file.relative_to(folder).as_posix()}")
