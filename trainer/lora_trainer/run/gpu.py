"""What NVML says about the GPU; nothing where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pynvml


@dataclass(frozen=True)
class GpuSample:
    """One look at the GPU: percent busy, bytes in use by all processes."""

    utilization: float | None = None
    memory_bytes: int | None = None


class GpuMonitor:
    """The first GPU of this process, and how many there are. `name` is None where there is no GPU or no NVML."""

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
        """How busy and how full the GPU is now."""
        if self._handle is None:
            return GpuSample()
        try:
            return GpuSample(
                float(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu),
                int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used),
            )
        except pynvml.NVMLError:
            return GpuSample()
