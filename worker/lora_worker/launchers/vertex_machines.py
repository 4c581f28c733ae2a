"""Which machine of Vertex AI has which GPUs.

Source: Google's page "Configure compute resources for serverless training", its table of valid numbers of GPUs for
each machine type (read in November 2026). An accelerator's name is one of `AcceleratorType` of
`google.cloud.aiplatform.v1`; the tests hold each against it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


class MachineUnknownError(ValueError):
    """Vertex AI has no such machine; the text is a sentence that says what it has."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine type with the GPUs that it brings."""

    machine_type: str
    accelerator_type: str
    gpu_count: int
    gpu: str
    """The GPU's name, as in the price table."""


@dataclass(frozen=True, slots=True)
class _Gpu:
    accelerator_type: str
    machine_types: Mapping[int, str]
    """By the number of GPUs."""
    names: tuple[str, ...]
    """A GPU's name means this one where one of them is part of it; of several the longest counts."""


_GPUS = {
    "H100": _Gpu(
        "NVIDIA_H100_80GB",
        {1: "a3-highgpu-1g", 2: "a3-highgpu-2g", 4: "a3-highgpu-4g", 8: "a3-highgpu-8g"},
        ("h100",),
    ),
    "H200": _Gpu("NVIDIA_H200_141GB", {8: "a3-ultragpu-8g"}, ("h200",)),
    "B200": _Gpu("NVIDIA_B200", {8: "a4-highgpu-8g"}, ("b200",)),
    "A100-80GB": _Gpu(
        "NVIDIA_A100_80GB",
        {1: "a2-ultragpu-1g", 2: "a2-ultragpu-2g", 4: "a2-ultragpu-4g", 8: "a2-ultragpu-8g"},
        ("a100", "a10080gb", "a100sxm480gb"),
    ),
    "A100-40GB": _Gpu(
        "NVIDIA_TESLA_A100",
        {1: "a2-highgpu-1g", 2: "a2-highgpu-2g", 4: "a2-highgpu-4g", 8: "a2-highgpu-8g"},
        ("a10040gb", "a100sxm440gb", "a100pcie40gb"),
    ),
    # Of the types with one L4 that with enough memory to load a base model of 13 billion weights.
    "L4": _Gpu(
        "NVIDIA_L4",
        {1: "g2-standard-16", 2: "g2-standard-24", 4: "g2-standard-48", 8: "g2-standard-96"},
        ("l4",),
    ),
    "RTX-PRO-6000": _Gpu(
        "NVIDIA_RTX_PRO_6000",
        {1: "g4-standard-48", 2: "g4-standard-96", 4: "g4-standard-192", 8: "g4-standard-384"},
        ("rtxpro6000",),
    ),
}
_OTHER_GPUS = ("l40", "gb200")
"""Their names hold that of a GPU above, and they are none of it."""
_FURTHER = (
    Machine("a3-megagpu-8g", "NVIDIA_H100_MEGA_80GB", 8, "H100"),
    *(Machine(f"g2-standard-{cpus}", "NVIDIA_L4", 1, "L4") for cpus in (8, 12, 32)),
)
"""Those that are had by their own name only."""
_ALL = {machine.machine_type: machine for machine in _FURTHER} | {
    machine_type: Machine(machine_type, gpu.accelerator_type, count, name)
    for name, gpu in _GPUS.items()
    for count, machine_type in gpu.machine_types.items()
}
MACHINES = tuple(_ALL.values())
"""All that a job can be given."""


def machine_for(gpu_type: str, gpu_count: int) -> Machine:
    """The machine with so many GPUs of a type, as the price table or a job writes it.

    Raises:
        MachineUnknownError: Vertex AI has no such GPU, or none with so many of them.
    """
    machine_types = _GPUS[_gpu_named(gpu_type)].machine_types
    if gpu_count not in machine_types:
        counts = ", ".join(map(str, machine_types))
        raise MachineUnknownError(f"Vertex AI has no machine with {gpu_count} × {gpu_type:.50}; there may be {counts}")
    return _ALL[machine_types[gpu_count]]


def machine_named(machine_type: str) -> Machine:
    """The machine of this type.

    Raises:
        MachineUnknownError: the table has none.
    """
    if machine_type not in _ALL:
        raise MachineUnknownError(f"{machine_type!r:.60} is no machine type with GPUs; choose one of {', '.join(_ALL)}")
    return _ALL[machine_type]


def machine_of_endpoint(machine_type: str, gpu_type: str | None, gpu_count: int) -> Machine | None:
    """The machine of an endpoint that names its type or its GPU; None where it has what each job asks for.

    Raises:
        MachineUnknownError: there is none, or the type has other GPUs than the endpoint's, by which runs are billed.
    """
    if not machine_type:
        return machine_for(gpu_type, gpu_count) if gpu_type else None
    machine = machine_named(machine_type)
    if gpu_type is None or _gpu_named(gpu_type) != machine.gpu or gpu_count != machine.gpu_count:
        raise MachineUnknownError(
            f"{machine_type} has {machine.gpu_count} × {machine.gpu}, and bills go by the endpoint's GPU: set "
            "LORA_WORKER_ENDPOINT_GPU_TYPE and LORA_WORKER_ENDPOINT_GPU_COUNT (gpu_type and gpu_count in a routing "
            "table) to that"
        )
    return machine


def _gpu_named(gpu_type: str) -> str:
    plain = re.sub(r"[^a-z0-9]", "", gpu_type.lower())
    names = {part: name for name, gpu in _GPUS.items() for part in gpu.names if part in plain}
    if not names or any(other in plain for other in _OTHER_GPUS):
        raise MachineUnknownError(f"Vertex AI has no {gpu_type:.50} for this worker; choose one of {', '.join(_GPUS)}")
    return names[max(names, key=len)]
