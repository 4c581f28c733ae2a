"""What an exception of torch says about the GPU, and the machine's memory: its forms are many."""

from __future__ import annotations

import torch

_OUT_OF_MEMORY = (
    "out of memory",  # the allocator's words, and the driver's: "CUDA error: out of memory"
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "can't allocate memory",  # the CPU's allocator
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: the GPU's, or the machine's as the CPU's allocator says it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def context_is_broken(error: BaseException) -> bool:
    """Whether nothing more can be done with the GPU in this process, not even reading its memory."""
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
