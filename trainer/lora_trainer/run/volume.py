"""The folders on the network volume, through which one execution of a job hands its work to the next.

    <volume>/lora-jobs/<job_id>/owner.json         names the execution that owns the job's folder now
    <volume>/lora-jobs/<job_id>/<execution_id>/    its dataset, checkpoints, artifact and outcome
    <volume>/models/                               base models, one folder each
    <volume>/huggingface-cache/                    base models, downloaded from the hub

Each execution writes into a folder of its own. So one that was believed dead, but is not, can't damage what its
successor writes. The successor reads the folders of the executions before it, and removes all when it has published.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.errors import DiskFullError, RequestInvalidError
from lora_trainer.run.files import write_atomically
from lora_trainer.run.task import Outcome

MOUNTS = (Path("/runpod-volume"), Path("/workspace"))
FULL_DISK_HINT = "Make the network volume larger, or remove old models from it."
_SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


def find_volume(configured: Path | None) -> Path:
    """The folder that outlives this container: the configured one, else a mounted network volume, else in the home."""
    if configured is not None:
        return configured
    for mount in MOUNTS:
        if mount.is_dir() and os.access(mount, os.W_OK):
            return mount
    return Path.home() / ".cache" / "lora-trainer"


def mounted_volume(configured: Path | None) -> Path | None:
    """The network volume: the configured folder, else what is mounted at the usual places; None where nothing is.

    A folder at such a place may also belong to the container, since libraries create it for their caches. What is
    written there is lost with the container.
    """
    if configured is not None:
        return configured
    return next((mount for mount in MOUNTS if _is_mount(mount) and os.access(mount, os.W_OK)), None)


def _is_mount(path: Path) -> bool:
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return path.is_mount()
    # The fifth field. `is_mount` would miss a folder that is bound from the same file system.
    return any(fields[4] == str(path) for line in lines if len(fields := line.split()) > 4)


def is_full_disk(error: BaseException) -> bool:
    """Whether the exception's text says that the disk is full. safetensors raises its own type, without an errno."""
    return "No space left on device" in str(error) or "Disk quota exceeded" in str(error)


@contextmanager
def naming_full_disks(folder: Path) -> Iterator[None]:
    """While this context is open, turn the OSError of a full disk or quota into a `DiskFullError` naming `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise DiskFullError(f"The disk is full at {folder}.", FULL_DISK_HINT) from None


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job on the volume, as one execution uses it."""

    path: Path
    execution_id: str

    @property
    def own(self) -> Path:
        """This execution's folder."""
        return self.path / self.execution_id

    def take(self, run_id: str) -> None:
        """Make this execution the owner of the job's folder, in place of any earlier one."""
        self.own.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "owner.json", json.dumps({"execution_id": self.execution_id}))
        self.note_seconds(run_id, 0)

    def is_owned(self) -> bool:
        """Whether this execution still owns the folder. Asked before each checkpoint is completed."""
        try:
            owner = json.loads((self.path / "owner.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return False
        return bool(owner.get("execution_id") == self.execution_id)

    def finished_artifact(self, fingerprint: str) -> tuple[Path, Outcome] | None:
        """A complete, unpublished artifact with this fingerprint by an earlier execution, and its outcome; or None."""
        for folder in self.earlier_executions():
            outcome = Outcome.read(folder)
            if outcome and outcome.status == "trained" and outcome.fingerprint == fingerprint:
                return folder / "artifact", outcome
        return None

    def earlier_executions(self) -> list[Path]:
        """The folders of the job's other executions, newest first."""
        if not self.path.is_dir():
            return []
        folders = (p for p in self.path.iterdir() if p.is_dir() and p.name != self.execution_id)
        return sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)

    def note_seconds(self, run_id: str, seconds: float) -> None:
        """Record how many seconds this execution has worked on the run; a later execution adds them to its own."""
        write_atomically(self.own / "seconds.json", json.dumps({"run_id": run_id, "seconds": seconds}))

    def seconds_of_run(self, run_id: str) -> float:
        """The seconds that earlier executions of the same run worked, as far as they recorded them."""
        total = 0.0
        for folder in self.earlier_executions():
            try:
                note = json.loads((folder / "seconds.json").read_bytes())
            except (FileNotFoundError, ValueError):
                continue
            if note.get("run_id") == run_id:
                total += float(note.get("seconds", 0))
        return total

    def remove(self) -> None:
        """Remove everything of the job. Called when its adapter is published."""
        shutil.rmtree(self.path, ignore_errors=True)


def open_job_folder(volume: Path, job_id: str, execution_id: str) -> JobFolder:
    """The job's folder on `volume`.

    Raises:
        RequestInvalidError: the job's id can't be a folder's name.
    """
    if not _SAFE_NAME.fullmatch(job_id):
        raise RequestInvalidError("job_id must consist of letters, digits, '-' and '_'.")
    return JobFolder(volume / "lora-jobs" / job_id, execution_id)


def remove_stale_jobs(volume: Path, *, keep: JobFolder, keep_days: float) -> None:
    """Remove the folders of jobs other than `keep` to which nobody has written for `keep_days` days."""
    oldest = time.time() - keep_days * 86_400
    for folder in (volume / "lora-jobs").iterdir():
        # Another container may be removing the same folder.
        with suppress(FileNotFoundError):
            latest = max((path.stat().st_mtime for path in folder.glob("*/*")), default=folder.stat().st_mtime)
            if folder != keep.path and latest < oldest:
                shutil.rmtree(folder, ignore_errors=True)
