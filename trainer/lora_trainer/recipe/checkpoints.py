"""Checkpoints that a later execution of the same job can resume from.

transformers writes its own files first: adapter, optimizer, schedule and random states. `lora-trainer.json` is
written last, so a checkpoint that has it is complete; one without it is ignored. The file also holds what
transformers does not save: every point of the curve, and the step and loss of the best adapter.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, Field, ValidationError

from lora_contract.protocol import Point
from lora_trainer.models.quantization import NF4, Quantization
from lora_trainer.run.files import write_atomically

_STATE_NAME = "lora-trainer.json"
BEST_ADAPTER_NAME = "best_adapter.safetensors"


class CheckpointState(BaseModel):
    """The content of `lora-trainer.json`: the state of a training after `step` optimizer steps."""

    fingerprint: str
    """Of dataset, hyperparameters and recipe, see `lora_trainer.run.execution.fingerprint_of`."""
    step: int
    quantization: Quantization = NF4
    """How the base model was held. With `quantization: auto` the hyperparameters don't say."""
    points: list[Point] = Field(default_factory=list)
    best_step: int | None = None
    best_loss: float | None = None
    best_rewards: dict[str, float] = Field(default_factory=dict)
    evaluations_without_gain: int = 0
    train_seconds: float = 0
    """Seconds trained up to this checkpoint, in all executions."""
    loss_before: float | None = None
    """Validation loss of the base model, measured before the first step."""
    validation_due: bool = False
    """Whether `step` is to be followed by an evaluation that had not been finished."""


class Checkpoint(NamedTuple):
    """A complete checkpoint."""

    folder: Path
    state: CheckpointState


def write_state(checkpoint: Path, state: CheckpointState) -> None:
    """Declare the checkpoint in this folder complete, by writing the file that is written last."""
    write_atomically(checkpoint / _STATE_NAME, state.model_dump_json())


def newest_checkpoint(
    job_folder: Path, fingerprint: str, quantization: Quantization | None = None
) -> Checkpoint | None:
    """The checkpoint with the most steps among those of all executions of the job; None if there is none.

    Checkpoints with another fingerprint are left out: they come from another dataset, other hyperparameters or an
    incompatible recipe. So are those whose base was held in another `quantization`, where that is given.
    """
    checkpoints = [
        Checkpoint(path.parent, state)
        for path in job_folder.glob(f"*/checkpoints/checkpoint-*/{_STATE_NAME}")
        if (state := _read(path)) is not None
        and state.fingerprint == fingerprint
        and quantization in {None, state.quantization}
    ]
    return max(checkpoints, key=lambda checkpoint: checkpoint.state.step, default=None)


def remove_checkpoints_of_others(job_folder: Path, own: Path) -> None:
    """Remove the checkpoints of the job's other executions; `own` is the folder of this execution's checkpoints.

    To be called when `own` holds a complete checkpoint, which replaces them.
    """
    for folder in job_folder.glob("*/checkpoints"):
        if folder != own:
            shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> CheckpointState | None:
    try:
        return CheckpointState.model_validate_json(path.read_bytes())
    except (ValidationError, OSError):
        return None
