"""Which machine of Vertex AI has which GPUs.

Source: Google's page "Configure compute resources for serverless training", its table of valid numbers of GPUs for
each machine type (read in November 2026). An accelerator's name is one of `AcceleratorType` of
`google.cloud.aiplatform.v1`; the tests hold each against it.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_worker.launchers.machine_types import MachineTypes


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine type with the GPUs that it brings."""

    name: str
    accelerator_type: str
    gpu_count: int
    gpu_type: str
    """The GPU's name, as in the price table."""
    boot_disk_type: str = ""
    """What its disk must be of, where that is not Vertex AI's default (`pd-ssd`, which newer machines don't take)."""


_SIZES = (1, 2, 4, 8)
_HYPERDISK = "hyperdisk-balanced"
_CHOSEN = (
    *(Machine(f"a3-highgpu-{count}g", "NVIDIA_H100_80GB", count, "H100") for count in _SIZES),
    Machine("a3-ultragpu-8g", "NVIDIA_H200_141GB", 8, "H200", _HYPERDISK),
    Machine("a4-highgpu-8g", "NVIDIA_B200", 8, "B200", _HYPERDISK),
    *(Machine(f"a2-ultragpu-{count}g", "NVIDIA_A100_80GB", count, "A100-80GB") for count in _SIZES),
    *(Machine(f"a2-highgpu-{count}g", "NVIDIA_TESLA_A100", count, "A100-40GB") for count in _SIZES),
    # Of the types with one L4 that with enough memory to load a base model of 13 billion weights.
    Machine("g2-standard-16", "NVIDIA_L4", 1, "L4"),
    *(Machine(f"g2-standard-{12 * count}", "NVIDIA_L4", count, "L4") for count in (2, 4, 8)),
    *(
        Machine(f"g4-standard-{48 * count}", "NVIDIA_RTX_PRO_6000", count, "RTX-PRO-6000", _HYPERDISK)
        for count in _SIZES
    ),
)
_FURTHER = (
    Machine("a3-megagpu-8g", "NVIDIA_H100_MEGA_80GB", 8, "H100"),
    *(Machine(f"g2-standard-{cpus}", "NVIDIA_L4", 1, "L4") for cpus in (8, 12, 32)),
)
MACHINES = MachineTypes(
    "Vertex AI",
    "machine",
    _CHOSEN,
    further=_FURTHER,
    names={
        "h100": "H100",
        "h200": "H200",
        "b200": "B200",
        "gb200": None,
        "a100": "A100-80GB",
        "a10080gb": "A100-80GB",
        "a100sxm480gb": "A100-80GB",
        "a10040gb": "A100-40GB",
        "a100sxm440gb": "A100-40GB",
        "a100pcie40gb": "A100-40GB",
        "l4": "L4",
        "l40": None,
        "rtxpro6000": "RTX-PRO-6000",
    },
)
