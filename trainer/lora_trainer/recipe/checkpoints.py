"""Checkpoints that a later execution of the same job can resume from.

transformers writes its own files first: adapter, optimizer, schedule and random states. `lora-trainer.json` is
written last, and notes the sizes of the others: a checkpoint without it, or in which another file is missing or has
another size, is ignored. The order alone would not do: where a cloud copies the volume to a bucket file by file, the
smallest file may arrive first, and the machine go. transformers would then begin with a new optimizer, without a word.
The file also holds what transformers does not save: every point of the curve, and the step and loss of the best
adapter.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, Field, ValidationError

from lora_contract.protocol import Point
from lora_trainer.models.quantization import NF4, Quantization
from lora_trainer.run.files import write_atomically

_STATE_NAME = "lora-trainer.json"
BEST_ADAPTER_NAME = "best_adapter.safetensors"
_OF_OTHER_RANKS = re.compile(r"rng_state_[0-9]+\.pth")
"""Of several processes that train together each writes one, perhaps while the first completes the checkpoint."""
_LEAST_OWN = 2
"""Of so many of an execution's own checkpoints the older one was written minutes ago, and is where the volume lasts."""


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
    files: dict[str, int] | None = None
    """The sizes of the other files in bytes, by name; None: an earlier version wrote it, and is believed."""


class Checkpoint(NamedTuple):
    """A complete checkpoint."""

    folder: Path
    state: CheckpointState


def write_state(checkpoint: Path, state: CheckpointState) -> None:
    """Declare the checkpoint in this folder complete, by writing the file that is written last."""
    noted = state.model_copy(update={"files": _sizes_in(checkpoint)})
    write_atomically(checkpoint / _STATE_NAME, noted.model_dump_json())


def newest_checkpoint(
    job_folder: Path, fingerprint: str, quantization: Quantization | None = None
) -> Checkpoint | None:
    """The complete checkpoint with the most steps among those of all executions of the job; None if there is none.

    Checkpoints with another fingerprint are left out: they come from another dataset, other hyperparameters or an
    incompatible recipe. So are those whose base was held in another `quantization`, where that is given.
    """
    folders = job_folder.glob("*/checkpoints/checkpoint-*")
    return _newest(each for each in _complete(folders, fingerprint) if quantization in {None, each.state.quantization})


def remove_replaced_checkpoints(job_folder: Path, own: Path, fingerprint: str, quantization: Quantization) -> None:
    """Remove the checkpoints of the job's other executions that those in `own`, this execution's folder, replace.

    To be called when a checkpoint in `own` is complete. Until there are two, the newest of the others is kept: the new
    one may not be yet where the cloud copies it to. One whose base was held in another quantisation is not kept: it may
    have more steps, and the next execution would go on from it, and run out of memory as the one before did.
    """
    others = [folder for folder in job_folder.glob("*/checkpoints") if folder != own]
    has_enough = len(_complete(own.glob("checkpoint-*"), fingerprint)) >= _LEAST_OWN
    left = [] if has_enough else [each for folder in others for each in folder.glob("checkpoint-*")]
    kept = _newest(each for each in _complete(left, fingerprint) if each.state.quantization == quantization)
    for folder in others:
        keeps = kept is not None and kept.folder.parent == folder
        for replaced in folder.iterdir() if keeps else [folder]:
            if kept is None or replaced != kept.folder:
                shutil.rmtree(replaced, ignore_errors=True)


def _complete(folders: Iterable[Path], fingerprint: str) -> list[Checkpoint]:
    return [
        Checkpoint(folder, state)
        for folder in folders
        if (state := _read(folder / _STATE_NAME)) is not None
        and state.fingerprint == fingerprint
        and _has_files(folder, state.files or {})
    ]


def _newest(checkpoints: Iterable[Checkpoint]) -> Checkpoint | None:
    return max(checkpoints, key=lambda checkpoint: checkpoint.state.step, default=None)


def _sizes_in(checkpoint: Path) -> dict[str, int]:
    """The sizes of the files that a training can't go on without."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and not _OF_OTHER_RANKS.fullmatch(path.name)]
    return {
        path.relative_to(checkpoint).as_posix(): path.stat().st_size
        for path in files
        if not path.name.startswith(_STATE_NAME)
    }


def _has_files(checkpoint: Path, sizes: dict[str, int]) -> bool:
    try:
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except OSError:
        return False


def _read(path: Path) -> CheckpointState | None:
    try:
        return CheckpointState.model_validate_json(path.read_bytes())
    except (ValidationError, OSError):
        return None
