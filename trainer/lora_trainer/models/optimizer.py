"""Which AdamW trains the adapter. Decided by the number of its weights alone: a resumed run must choose the same."""

from __future__ import annotations

from dataclasses import dataclass

_WORTH_SAVING_BYTES = 1 << 30
"""Below, 8-bit states save too little memory for what they cost: bitsandbytes waits for the GPU at each tensor."""


@dataclass(frozen=True)
class Optimizer:
    """An optimizer as transformers calls it, and the bytes of state that it keeps for a trained weight."""

    name: str
    state_bytes: int


FUSED = Optimizer("adamw_torch_fused", 8)
PAGED_8BIT = Optimizer("paged_adamw_8bit", 2)
PLAIN = Optimizer("adamw_torch", 8)


def choose_optimizer(trainable: int, *, is_gpu: bool) -> Optimizer:
    """Fused AdamW, or AdamW with 8-bit states where an adapter is so large that they save a gigabyte."""
    if not is_gpu:
        return PLAIN
    saved_bytes = trainable * (FUSED.state_bytes - PAGED_8BIT.state_bytes)
    return PAGED_8BIT if saved_bytes > _WORTH_SAVING_BYTES else FUSED
