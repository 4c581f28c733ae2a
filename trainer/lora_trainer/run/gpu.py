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
    """Reads the first GPU of this machine. Its attributes are None where there is no GPU, or no NVML.

    Reads nothing unless `wanted`.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._handle: Any = None
        self.name: str | None = None
        self.driver: str | None = None
        self.count: int | None = None
        if not wanted:
            return
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
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
