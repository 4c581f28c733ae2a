"""Recognises exceptions that say that memory ran out or that the GPU failed; torch has many forms of them."""

from __future__ import annotations

import torch

_OUT_OF_MEMORY = (
    "out of memory",  # torch's GPU allocator, and the driver ("CUDA error: out of memory")
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "can't allocate memory",  # torch's CPU allocator
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU's memory ran out, or the machine's main memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def context_is_broken(error: BaseException) -> bool:
    """Whether this process can no longer use the GPU, not even read its memory; a new process can."""
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
