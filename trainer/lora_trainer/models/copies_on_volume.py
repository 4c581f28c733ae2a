"""The room that quantised copies of models take on the volume, and how it is given back.

It needs no torch: a download, which makes room too, must neither wait for it nor depend on it.
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = "quantised-models"
MANIFEST_NAME = "manifest.json"
WRITING, _REMOVED = ".writing", ".removed"
_IN_USE_SECONDS = 3600
"""A copy that a job began to read so recently is not removed to make room."""
_STALE_SECONDS = 900
"""A copy that nobody has written to for so long was left by a process that was killed."""


@dataclass(frozen=True)
class Entry:
    """What counts of a copy when room is made."""

    folder: Path
    size: int
    used: float
    """When a job last began to read it, in seconds since 1970."""


def choose_evictions(
    entries: Sequence[Entry], needed: int, *, most_bytes: int, free_bytes: int, now: float
) -> list[Entry] | None:
    """The copies to remove so that `needed` more bytes fit, those used longest ago first; None if they can't fit.

    All copies together may take `most_bytes`; `free_bytes` are free on the volume beyond what must stay free.
    """
    kept = sum(entry.size for entry in entries)
    chosen: list[Entry] = []
    removable = sorted((e for e in entries if e.used < now - _IN_USE_SECONDS), key=lambda entry: entry.used)
    while kept + needed > most_bytes or needed > free_bytes:
        if not removable:
            return None
        chosen.append(removable.pop(0))
        kept -= chosen[-1].size
        free_bytes += chosen[-1].size
    return chosen


def free_disk(volume: Path, needed: int, *, spare_bytes: int) -> None:
    """Remove copies so that `needed` bytes fit on the volume and `spare_bytes` stay free; none where that can't be."""
    folder = volume / FOLDER
    if not folder.is_dir():
        return
    if shutil.disk_usage(folder).free < needed + spare_bytes:
        remove_leftovers(folder)
    entries = entries_in(folder)
    free_bytes = shutil.disk_usage(folder).free - spare_bytes
    most_bytes = sum(entry.size for entry in entries) + needed
    evict(choose_evictions(entries, needed, most_bytes=most_bytes, free_bytes=free_bytes, now=time.time()) or [])


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing or removing."""
    for path in (*folder.glob(f"*{WRITING}"), *folder.glob(f"*{_REMOVED}")):
        with suppress(OSError):  # another execution may remove it at the same time
            newest = max(file.stat().st_mtime for file in (path, *path.rglob("*")))
            if newest < time.time() - _STALE_SECONDS:
                remove(path)


def entries_in(folder: Path) -> list[Entry]:
    """The whole copies in a folder."""
    found = []
    for path in folder.iterdir():
        with suppress(OSError):  # another execution may remove it at the same time
            if path.suffix not in {WRITING, _REMOVED}:
                size = sum(file.stat().st_size for file in path.iterdir())
                found.append(Entry(path, size, (path / MANIFEST_NAME).stat().st_mtime))
    return found


def evict(entries: Sequence[Entry]) -> None:
    """Remove copies, each with a line in the log."""
    for entry in entries:
        log.info("removing a quantised copy of %.1f GB to make room; it was not used for longest", entry.size / 1e9)
        remove(entry.folder)


def remove(folder: Path) -> None:
    """Remove a folder so that at no time a part of it stands under its name."""
    aside = folder.with_name(f"{folder.name.split('.')[0]}.{uuid.uuid4().hex}{_REMOVED}")
    with suppress(OSError):  # another execution may have removed it
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
