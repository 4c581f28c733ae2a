"""On which device a model is trained, and in which precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Hardware:
    """The device that holds the model, as torch calls it, and the type in which it computes."""

    device: str
    dtype: torch.dtype

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device != "cpu"


def detect_hardware() -> Hardware:
    """The first GPU, with bf16 if it supports that, else fp16; without a GPU the CPU, where fp32 is the fastest."""
    if not torch.cuda.is_available():
        return Hardware("cpu", torch.float32)
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return Hardware("cuda:0", dtype)


def free_gpu_bytes() -> int:
    """The bytes of the GPU's memory that no process holds now. Another process may hold a part of a shared GPU."""
    free, _ = torch.cuda.mem_get_info()
    return free


def gpu_identity() -> dict[str, str | None]:
    """The `uuid` of the GPU that trains, without the prefix that NVML puts before it, and its `name`; None: unknown."""
    if not torch.cuda.is_available():
        return {"uuid": None, "name": None}
    properties = torch.cuda.get_device_properties(0)
    uuid = getattr(properties, "uuid", None)
    return {"uuid": None if uuid is None else str(uuid), "name": str(properties.name)}
