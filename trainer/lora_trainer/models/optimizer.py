"""Chooses the implementation of AdamW that trains the adapter.

The choice depends on the number of trained weights only. A run that resumes on another GPU must choose the same one,
because it loads the optimizer's state from the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

_WORTH_SAVING_BYTES = 1 << 30
"""8-bit states must save more memory than this, as they are slow: bitsandbytes waits for the GPU at each tensor."""


@dataclass(frozen=True)
class Optimizer:
    """An implementation of AdamW."""

    name: str
    """The value of transformers' `optim`."""
    state_bytes: int
    """Bytes of optimizer state per trained weight."""


FUSED = Optimizer("adamw_torch_fused", 8)
PAGED_8BIT = Optimizer("paged_adamw_8bit", 2)
PLAIN = Optimizer("adamw_torch", 8)


def choose_optimizer(trainable: int, *, is_gpu: bool) -> Optimizer:
    """Fused AdamW, or AdamW with 8-bit states if these save more than a gigabyte; on a CPU the plain one.

    `trainable` is the number of trained weights.
    """
    if not is_gpu:
        return PLAIN
    saved_bytes = trainable * (FUSED.state_bytes - PAGED_8BIT.state_bytes)
    return PAGED_8BIT if saved_bytes > _WORTH_SAVING_BYTES else FUSED
