"""Runs a process as a small container would: little memory, nothing to write to.

As root on Linux both are real: a control group whose limit the kernel enforces, and a mount namespace in which every
file system is read-only. Elsewhere the process gets a folder that it can't write, and its memory is only measured.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.processes.waiting import until

_GROUPS = Path("/sys/fs/cgroup")
_READ_ONLY = """
set -e
mount --make-rprivate /
# Submounts first. Those that refuse it are pseudo file systems, such as /proc, which hold no files of ours.
for target in $(awk '{ print $5 }' /proc/self/mountinfo | sort -ru); do
    mount -o remount,bind,ro "$target" 2>/dev/null || true
done
cd "$CONFINED_FOLDER"
exec "$@"
"""


@dataclass(frozen=True)
class MemoryGroup:
    """A control group with a limit. `kind` is 1 or 2, the version of its interface."""

    folder: Path
    kind: int

    @property
    def killed(self) -> int:
        """How many processes the kernel has killed because the group's memory ran out."""
        name = "memory.oom_control" if self.kind == 1 else "memory.events"
        rows = dict(line.split() for line in (self.folder / name).read_text().splitlines())
        return int(rows["oom_kill"])


@dataclass(frozen=True)
class Confinement:
    """What confines a process here, and how to start one in it."""

    folder: Path
    """The working folder, which can't be written."""
    group: MemoryGroup | None
    is_read_only: bool
    """Whether every file system is read-only, and not the working folder alone."""

    def command(self, *command: str) -> list[str]:
        """The command with which to start a confined process."""
        confined = list(command)
        if self.is_read_only:
            confined = ["unshare", "--mount", "sh", "-c", _READ_ONLY, "sh", *confined]
        if self.group is not None:
            # Each process that it starts is in the group, too.
            join = f'echo $$ > "{self.group.folder / "cgroup.procs"}" && exec "$@"'
            confined = ["sh", "-c", join, "sh", *confined]
        return confined

    def environment(self) -> dict[str, str]:
        """The variables that a confined process needs: it finds no folder for temporary files."""
        nowhere = str(self.folder / "none")
        return {
            "CONFINED_FOLDER": str(self.folder),
            "TMPDIR": nowhere,
            "HOME": nowhere,
            # As the image sets it. Python would otherwise try to write its compiled files, and go on without.
            "PYTHONDONTWRITEBYTECODE": "1",
        }


@contextmanager
def confined(folder: Path, memory_bytes: int) -> Iterator[Confinement]:
    """Confine processes to `folder` and to `memory_bytes`, as far as this machine can; removes the group at the end."""
    folder.mkdir()
    folder.chmod(0o555)
    with _memory_group(memory_bytes) as group:
        yield Confinement(folder, group, is_read_only=_can_unshare())


def _can_unshare() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    probe = ["unshare", "--mount", "sh", "-c", "mount --make-rprivate / && mount -o remount,bind,ro /"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@contextmanager
def _memory_group(limit_bytes: int) -> Iterator[MemoryGroup | None]:
    kind = 1 if (_GROUPS / "memory").is_dir() else 2
    folder = (_GROUPS / "memory" if kind == 1 else _GROUPS) / f"lora-test-{uuid.uuid4().hex[:12]}"
    limits = (
        {"memory.limit_in_bytes": limit_bytes, "memory.memsw.limit_in_bytes": limit_bytes}
        if kind == 1
        else {"memory.max": limit_bytes, "memory.swap.max": 0}
    )
    made = False
    try:
        folder.mkdir()
        made = True
        for number, (name, value) in enumerate(limits.items()):
            if number == 0 or (folder / name).exists():  # the second only where the kernel counts swap
                (folder / name).write_text(str(value))
    except OSError:
        if made:
            folder.rmdir()
        yield None
        return
    try:
        yield MemoryGroup(folder, kind)
    finally:
        until(lambda: not (folder / "cgroup.procs").read_text(), "the group's last process ends")
        folder.rmdir()


def peak_bytes(pid: int) -> int:
    """The most resident memory that a process has had so far, in bytes (Linux)."""
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(rows["VmHWM"].split()[0]) * 1024
