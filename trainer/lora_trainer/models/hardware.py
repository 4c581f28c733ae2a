"""Where a model is trained, and in which precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Hardware:
    """Where the model lives, and in which precision it computes."""

    device: str
    dtype: torch.dtype

    @property
    def is_gpu(self) -> bool:
        """Whether there is a CUDA device."""
        return self.device != "cpu"


def detect_hardware() -> Hardware:
    """The first GPU, in bf16 where it has bf16; else the CPU, where fp32 is the fastest."""
    if not torch.cuda.is_available():
        return Hardware("cpu", torch.float32)
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return Hardware("cuda:0", dtype)
