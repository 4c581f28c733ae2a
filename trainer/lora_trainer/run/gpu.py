"""Reads the GPU's name, driver, utilization and memory from NVML, NVIDIA's management library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pynvml


@dataclass(frozen=True)
class GpuSample:
    """A reading of the GPU; None where it can't be read."""

    utilization: float | None = None
    """Percent of the time in which the GPU computed."""
    memory_bytes: int | None = None
    """Memory in use by all processes."""


class GpuMonitor:
    """Reads the GPU with the given UUID, or the first of this machine. Attributes are None without a GPU or NVML.

    NVML numbers all GPUs of the machine, also those that CUDA_VISIBLE_DEVICES hides from this process: only the UUID
    names the GPU that trains. Reads nothing unless `wanted`.
    """

    def __init__(self, *, wanted: bool, uuid: str | None = None) -> None:
        self._handle: Any = None
        self.name: str | None = None
        self.driver: str | None = None
        self.count: int | None = None
        if not wanted:
            return
        try:
            pynvml.nvmlInit()
            self._handle = _find_gpu(uuid)
            self.name = str(pynvml.nvmlDeviceGetName(self._handle))
            self.driver = str(pynvml.nvmlSystemGetDriverVersion())
            self.count = int(pynvml.nvmlDeviceGetCount())
        except pynvml.NVMLError:
            self._handle = None

    def sample(self) -> GpuSample:
        """Read utilization and memory now."""
        if self._handle is None:
            return GpuSample()
        try:
            return GpuSample(
                float(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu),
                int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used),
            )
        except pynvml.NVMLError:
            return GpuSample()


def _find_gpu(uuid: str | None) -> Any:
    if uuid is not None:
        try:
            return pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError:
            pass  # in some containers NVML knows a part of a GPU by another name
    return pynvml.nvmlDeviceGetHandleByIndex(0)
