"""Reads the GPU's name, driver, utilization and memory from NVML, NVIDIA's management library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pynvml

from lora_contract.words import counted
from lora_trainer.errors import GpusMissingError


@dataclass(frozen=True)
class GpuSample:
    """A reading of the GPU; None where it can't be read."""

    utilization: float | None = None
    """Percent of the time in which the GPU computed."""
    memory_bytes: int | None = None
    """Memory in use by all processes."""


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none where there is no driver."""
    try:
        pynvml.nvmlInit()
        count = int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return []
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(number) for number in range(count)]
    return [name for part in given.split(",") if (name := part.strip()) and name != "-1"]


def gpus_for(asked: int, there: Sequence[str]) -> list[str | None]:
    """The GPU of each process of a training that asks for so many; None: the CPU, on a machine without GPUs.

    Raises:
        GpusMissingError: there are fewer; names both numbers, and what to change.
    """
    if 0 < len(there) < asked:
        raise GpusMissingError(
            f"The job asks for {counted(asked, 'GPU')}, and the machine has {len(there)} for it.",
            f"Set gpu_config's count to {len(there)}, or choose an endpoint with {counted(asked, 'GPU')}.",
        )
    return list(there[:asked]) if there else [None] * asked


class GpuMonitor:
    """Reads the GPU with the given UUID, or the only one of this machine. Attributes are None without a GPU or NVML.

    NVML numbers all GPUs of the machine, also those that CUDA_VISIBLE_DEVICES hides from this process: only the UUID
    names the GPU that trains. Where NVML doesn't know it, and there are several, nothing is read, rather than another
    GPU's load; `name` is then the one given, which is what torch calls the GPU. Reads nothing unless `wanted`.
    """

    def __init__(self, *, wanted: bool, uuid: str | None = None, name: str | None = None) -> None:
        self._handle: Any = None
        self.name = name
        self.driver: str | None = None
        self.count: int | None = None
        if not wanted:
            return
        try:
            pynvml.nvmlInit()
            self.driver = str(pynvml.nvmlSystemGetDriverVersion())
            self.count = int(pynvml.nvmlDeviceGetCount())
            self._handle = _find_gpu(uuid)
            self.name = str(pynvml.nvmlDeviceGetName(self._handle))
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
    # A part of a GPU (MIG) has a name of its own in NVML, which some containers don't know.
    for name in () if uuid is None else (f"GPU-{uuid}", f"MIG-{uuid}"):
        with suppress(pynvml.NVMLError):
            return pynvml.nvmlDeviceGetHandleByUUID(name)
    if pynvml.nvmlDeviceGetCount() > 1:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
    return pynvml.nvmlDeviceGetHandleByIndex(0)
