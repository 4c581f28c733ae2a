"""The checks of the machine that need no GPU: main memory, the network volume, free disk."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lora_trainer.errors import UnfitError

_LEAST_MEMORY_BYTES = 4 * 10**9
"""What loading a base model takes besides its largest tensor, with torch itself. RunPod's SDK asks for as much."""
_TRIAL_BYTES = 4 << 20
"""Large enough that a volume over its quota refuses it; `disk_usage` of a network volume counts the whole cluster."""


def check_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> str:
    """Whether enough main memory is available to load a model: of the machine, and under the container's limit."""
    available = _available_bytes(meminfo, cgroup)
    if available is None:
        return "Not checked: this system does not say how much memory is available."
    if available < _LEAST_MEMORY_BYTES:
        raise UnfitError(
            f"{available / 1e9:.1f} GB of main memory are available, and {_LEAST_MEMORY_BYTES / 1e9:.0f} are needed."
        )
    return f"{available / 1e9:.1f} GB of main memory are available."


def _available_bytes(meminfo: Path, cgroup: Path) -> int | None:
    sizes = []
    try:
        rows = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        sizes.append(int(rows["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        sizes.append(int(limit) - used)  # "max" is no number: no limit
    except (OSError, ValueError):
        pass
    return min(sizes, default=None)


def check_volume(volume: Path) -> str:
    """Whether the folder of job folders and models can be written, and reads back what was written."""
    trial = volume / f".fitness-{secrets.token_hex(8)}"
    content = secrets.token_bytes(1024) * (_TRIAL_BYTES // 1024)
    try:
        volume.mkdir(parents=True, exist_ok=True)
        with trial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        renamed = trial.rename(trial.with_suffix(".renamed"))
        read = renamed.read_bytes()
    except OSError as error:
        raise UnfitError(
            f"The volume {volume} can't be written: {os.strerror(error.errno) if error.errno else 'unknown reason'}.",
            "Look whether the endpoint's network volume is attached, in the same region, and not full.",
        ) from None
    finally:
        for left in (trial, trial.with_suffix(".renamed")):
            with suppress(OSError):  # what is wrong with the volume is in the sentence already
                left.unlink(missing_ok=True)
    if read != content:
        raise UnfitError(f"The volume {volume} reads back other bytes than were written.")
    return f"{volume} takes what is written, and reads it back."


def check_disk(folders: Sequence[Path], least_bytes: int) -> str:
    """Whether `least_bytes` are free where the trainer writes."""
    found = []
    for folder in folders:
        free = shutil.disk_usage(folder).free
        if free < least_bytes:
            raise UnfitError(
                f"{free / 1e9:.1f} GB are free at {folder}, and {least_bytes / 1e9:.1f} are needed "
                "(LORA_TRAINER_LEAST_FREE_GB).",
                "Make the volume or the container's disk larger, or remove old models.",
            )
        found.append(f"{free / 1e9:,.1f} GB at {folder}")
    return f"Free: {', '.join(found)}."
