"""The stand-in for the training, which prints what no log may hold, and then ends as the job's seed says."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import warnings
from enum import IntEnum
from pathlib import Path
from typing import Any

from sandbox import standin


class Ending(IntEnum):
    """How the training ends; the seed of a job."""

    WELL = 7001
    RAISED = 7002
    """An exception that quotes a row, as a library's may."""
    KILLED = 7003
    """As the kernel kills it when the machine's memory runs out."""
    NO_HANDLER = 7005
    """The handler is killed, and the container ends with it."""
    NO_MEMORY = 7004
    """It gets no more memory."""


def leak(task: dict[str, Any]) -> None:
    """Print rows and keys in the ways in which libraries do."""
    row = Path(task["dataset"]).read_text(encoding="utf-8").splitlines()[0]
    print(f"Token indices sequence length is longer than allowed: {row}")
    print(f"\r  0%|          | 0/4 [00:00<?, ?it/s] {row}", file=sys.stderr)
    warnings.warn(f"Mismatch between tokenized prompt and {row}", UserWarning, stacklevel=1)
    print(f"2026-11-26 14:00:00,123 transformers.trainer WARNING {row}")
    print(f"2026-11-26 14:00:00,123 lora_trainer.recipe.train INFO with {os.environ['LEAKED_TOKEN']} it goes on")
    print("GET https://p.supabase.co/storage/v1/object/sign/lora-datasets/u/d.jsonl?token=abc.def")


class LeakyTraining(standin.Training):
    """Leaks before its first step."""

    def _train(self) -> None:
        leak(self._task)
        match self._seed:
            case Ending.RAISED:
                raise ValueError(Path(self._task["dataset"]).read_text(encoding="utf-8"))
            case Ending.KILLED:
                os.kill(os.getpid(), signal.SIGKILL)
            case Ending.NO_HANDLER:
                # After the handler has passed on what was printed.
                time.sleep(0.5)
                os.kill(os.getppid(), signal.SIGKILL)
            case Ending.NO_MEMORY:
                resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))
                bytearray(1 << 40)
        super()._train()


if __name__ == "__main__":
    standin.Training = LeakyTraining  # type: ignore[misc]
    sys.exit(standin.main(sys.argv[1:]))
