"""Checkpoints that can be trusted: whole, of the same inputs, of the same job.

The trainer's own files come first; the mark, written last, makes the checkpoint count. It also holds
what transformers doesn't keep: every point of the curve and the best adapter so far.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from lora_contract.protocol import Point
from lora_trainer.run.task import write_atomically

_MARK_NAME = "lora-trainer.json"
BEST_NAME = "best_adapter.safetensors"


class Mark(BaseModel):
    """The state of a run at a step, beside what transformers saves."""

    fingerprint: str
    step: int
    points: list[Point] = Field(default_factory=list)
    best_step: int | None = None
    best_loss: float | None = None
    evaluations_without_gain: int = 0
    train_seconds: float = 0
    loss_before: float | None = None
    """Validation loss of the base, before the first step."""
    validation_due: bool = False
    """Whether the training broke off between the step and its look at the held-out examples."""


def write_mark(checkpoint: Path, mark: Mark) -> None:
    """Declare a checkpoint whole."""
    write_atomically(checkpoint / _MARK_NAME, mark.model_dump_json())


def newest_checkpoint(job_folder: Path, fingerprint: str) -> tuple[Path, Mark] | None:
    """The checkpoint with the most steps that any execution of the job left, if its inputs are the same."""
    found = [
        (path.parent, mark)
        for path in job_folder.glob(f"*/checkpoints/checkpoint-*/{_MARK_NAME}")
        if (mark := _read(path)) is not None and mark.fingerprint == fingerprint
    ]
    return max(found, key=lambda pair: pair[1].step, default=None)


def remove_others(job_folder: Path, own: Path) -> None:
    """Remove checkpoints of earlier executions: this one has a later one now."""
    for folder in job_folder.glob("*/checkpoints"):
        if folder != own:
            shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> Mark | None:
    try:
        return Mark.model_validate_json(path.read_bytes())
    except (ValidationError, OSError):
        return None
