"""Finds the GPUs of this machine, without a library of NVIDIA: the driver's own tool lists them."""

from __future__ import annotations

import re
import subprocess

_LINE = re.compile(r"GPU \d+: .*\(UUID: (GPU-[0-9a-f-]+)\)")
_SECONDS = 30


def find_gpus() -> list[str]:
    """The UUIDs of the machine's NVIDIA GPUs, which `CUDA_VISIBLE_DEVICES` takes; none where there is no driver.

    A UUID names the same card after a restart, and an index may not.
    """
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return read_gpus(listed.stdout)


def read_gpus(listed: str) -> list[str]:
    """The UUIDs in what `nvidia-smi -L` prints. MIG instances, on lines of their own, are left to --gpus."""
    return [found[1] for line in listed.splitlines() if (found := _LINE.fullmatch(line.strip()))]
