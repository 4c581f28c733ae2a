"""A process that exports, and dies in the middle of its second weight file where it is told so.

Prints by how many bytes its memory grew at the most.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from lora_trainer.export.adapter import read_adapter
from lora_trainer.export.layout import Shard
from lora_trainer.export.merged import export_merged
from lora_trainer.models.bases import Base


class Dying:
    """A file that ends the process after so many bytes."""

    def __init__(self, target, left):
        self.target, self.left = target, left

    def write(self, content):
        self.target.write(content)
        self.left -= len(content)
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    adapter, base, target, dies = sys.argv[1:]
    if dies == "dies":
        write = Shard.write
        Shard.write = lambda shard, file: write(
            shard, Dying(file, shard.size // 2) if shard.name.startswith("model-00002") else file
        )
    torch.ones(1000, 1000) @ torch.ones(1000, 1000)  # what the first product loads
    before = memory("VmRSS")
    read = read_adapter(Path(adapter))
    export_merged(read, Base("org/base", None, Path(base)), Path(target), lambda text: print(text, flush=True))
    print("grew", memory("VmHWM") - before)
