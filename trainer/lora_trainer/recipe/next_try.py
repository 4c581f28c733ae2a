"""What follows where memory ran out or compiling failed: another try of the training, which needs less.

memory ran out, activations kept        they are recomputed
… activations recomputed                the rows of a forward pass are halved
… one row, the base in bf16 by choice   the user's choice stands: the training fails
… one row, the base in bf16 by `auto`   the base is held in 4 bits, and the training begins anew
… one row, the base in 4 bits           the training fails
compiling failed                        the layers are not compiled
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from lora_contract.batches import smaller_micro_batch
from lora_contract.words import counted
from lora_trainer.errors import OutOfMemoryError, TrainingError
from lora_trainer.models.compiling import is_compile_failure
from lora_trainer.models.cuda_faults import is_out_of_memory
from lora_trainer.models.quantization import AUTO, BF16, NF4
from lora_trainer.recipe.ranks import Ranks
from lora_trainer.recipe.setup import TrainingSetup
from lora_trainer.run.helpers import HelperEnding
from lora_trainer.run.task import Outcome, Retry, Task


class Ending(Enum):
    """How the steps of a training ended."""

    DONE = "after the last step, or because a stop was requested"
    OUT_OF_MEMORY = "memory ran out"
    NOT_COMPILED = "torch.compile failed"
    LOST = "another of the processes that train together has died"


def failure_of(error: RuntimeError) -> Ending | None:
    """The ending that an exception means; None if another try would fail, too."""
    if is_compile_failure(error):
        return Ending.NOT_COMPILED
    return Ending.OUT_OF_MEMORY if is_out_of_memory(error) else None


def failure_of_helper(ranks: Ranks) -> Ending | None:
    """The ending that the death of another process means; None if none has died."""
    status = ranks.helpers.failure() if ranks.helpers is not None else None
    if status is None:
        return None
    known: dict[int, Ending] = {
        HelperEnding.OUT_OF_MEMORY: Ending.OUT_OF_MEMORY,
        HelperEnding.NOT_COMPILED: Ending.NOT_COMPILED,
    }
    return known.get(status, Ending.LOST)


def failed_outcome(ending: Ending, task: Task, setup: TrainingSetup) -> Outcome:
    """The outcome of a training that failed in its steps, with what another try changes."""
    if ending is Ending.OUT_OF_MEMORY:
        return out_of_memory(task, setup, next_try(task, setup))
    error = TrainingError("The layers could not be compiled.", "Set LORA_TRAINER_COMPILE to off on the endpoint.")
    retry = _changed(task, compile="failed") if setup.compiles else None
    return Outcome(status="failed", fingerprint=task.fingerprint, error=error.as_protocol(), retry=retry)


def out_of_memory(task: Task, setup: TrainingSetup, retry: Retry | None) -> Outcome:
    """The outcome of a training for which there was too little memory."""
    error = OutOfMemoryError(
        f"Memory ran out with {counted(setup.micro_batch, 'row')} of {setup.shape.row_tokens} tokens per forward pass.",
        "Lower max_length or the rank, or choose a GPU with more memory.",
    )
    return Outcome(status="failed", fingerprint=task.fingerprint, error=error.as_protocol(), retry=retry)


def next_try(task: Task, setup: TrainingSetup) -> Retry | None:
    """What to change after memory ran out in a step; None if nothing is left to change.

    Recomputing frees most of what a pass holds, and costs a quarter of the speed. Only then are passes halved. To hold
    the base in 4 bits comes last, since the training then begins anew.
    """
    if not setup.recompute:
        return _changed(task, micro_batch=setup.micro_batch, recompute=True)
    if (fewer := smaller_micro_batch(setup.micro_batch)) is not None:
        return _changed(task, micro_batch=fewer, recompute=True)
    return quantised_try(task, setup)


def quantised_try(task: Task, setup: TrainingSetup) -> Retry | None:
    """A try with the base in 4 bits, planned anew; None where it is so already, or the user wants bf16."""
    if setup.quantization != BF16 or task.hyperparameters.quantization != AUTO:
        return None
    return _changed(task, micro_batch=None, recompute=None, quantization=NF4)


def _changed(task: Task, **changes: Any) -> Retry:
    return Retry(**{**{name: getattr(task, name) for name in Retry.model_fields}, **changes})
