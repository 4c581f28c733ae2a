"""Prints the pip option with which `make` installs PyTorch's CPU build, or nothing. Only the standard library is used.

On Linux the default build of PyTorch brings gigabytes of CUDA, which a machine without an NVIDIA GPU can't use. The CPU
build is in an index of its own. Where that index does not answer within seconds (no network, a mirror instead of the
internet), the default is installed, as without this file. Each failure is such a case: nothing is printed for it.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_SECONDS = 5.0
_NVIDIA = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""Of the driver, and of the driver under WSL."""


def has_nvidia_gpu() -> bool:
    """Tell whether this machine has NVIDIA's driver: then the default build can use the GPU."""
    return shutil.which("nvidia-smi") is not None or any(path.exists() for path in _NVIDIA)


def answers(index: str, seconds: float = _SECONDS) -> bool:
    """Tell whether the index offers torch, within `seconds` in all, however long a name server takes."""
    found: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{index}/torch/", timeout=seconds) as answer:  # noqa: S310 ours, or the user's
                found.append(answer.status == 200 and b"torch-" in answer.read(1 << 16))
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return found == [True]


def pip_option(platform: str, environment: Mapping[str, str]) -> str:
    """The option for pip; empty where the default build is right, or the only one to be had."""
    if platform != "linux" or has_nvidia_gpu():
        return ""
    index = environment.get("TORCH_CPU_INDEX", CPU_INDEX)
    return f"--extra-index-url {index}" if index and answers(index) else ""


if __name__ == "__main__":
    option = pip_option(sys.platform, os.environ)
    if option:
        sys.stdout.write(f"{option}\n")
        sys.stdout.flush()
    # Not sys.exit: a name server that does not answer must not hold up the end.
    os._exit(0)
