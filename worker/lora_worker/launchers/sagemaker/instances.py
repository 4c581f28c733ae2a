"""Which instance type of SageMaker has which GPUs.

Source: Amazon's pages of the EC2 instance types P4, P5, P6, G5, G6, G6e and G7e; that SageMaker trains on a type, its
own service model (`TrainingInstanceType`; a test holds each against it). All of them have a local NVMe disk, which
SageMaker uses instead of a volume. Of the types with the same GPUs that is taken whose memory holds a base model while
it is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_worker.launchers.machine_types import MachineTypes


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance type with its GPUs."""

    name: str
    gpu_type: str
    """As the price table calls it."""
    gpu_count: int
    memory_gb: int
    """Of one GPU."""


_CHOSEN = (
    Instance("ml.p6-b200.48xlarge", "B200", 8, 180),
    Instance("ml.p5en.48xlarge", "H200", 8, 141),
    Instance("ml.p5.4xlarge", "H100", 1, 80),
    Instance("ml.p5.48xlarge", "H100", 8, 80),
    Instance("ml.p4de.24xlarge", "A100-80GB", 8, 80),
    Instance("ml.p4d.24xlarge", "A100-40GB", 8, 40),
    Instance("ml.g7e.4xlarge", "RTX-PRO-6000", 1, 96),
    Instance("ml.g7e.12xlarge", "RTX-PRO-6000", 2, 96),
    Instance("ml.g7e.24xlarge", "RTX-PRO-6000", 4, 96),
    Instance("ml.g7e.48xlarge", "RTX-PRO-6000", 8, 96),
    Instance("ml.g6e.4xlarge", "L40S", 1, 48),
    Instance("ml.g6e.12xlarge", "L40S", 4, 48),
    Instance("ml.g6e.48xlarge", "L40S", 8, 48),
    Instance("ml.g5.4xlarge", "A10G", 1, 24),
    Instance("ml.g5.12xlarge", "A10G", 4, 24),
    Instance("ml.g5.48xlarge", "A10G", 8, 24),
    Instance("ml.g6.4xlarge", "L4", 1, 24),
    Instance("ml.g6.12xlarge", "L4", 4, 24),
    Instance("ml.g6.48xlarge", "L4", 8, 24),
)
_FURTHER = (
    Instance("ml.p5e.48xlarge", "H200", 8, 141),
    *(Instance(f"ml.g7e.{size}", "RTX-PRO-6000", 1, 96) for size in ("2xlarge", "8xlarge")),
    *(Instance(f"ml.g6e.{size}", "L40S", 1, 48) for size in ("xlarge", "2xlarge", "8xlarge", "16xlarge")),
    *(Instance(f"ml.g5.{size}", "A10G", 1, 24) for size in ("xlarge", "2xlarge", "8xlarge", "16xlarge")),
    *(Instance(f"ml.g6.{size}", "L4", 1, 24) for size in ("xlarge", "2xlarge", "8xlarge", "16xlarge")),
    Instance("ml.g6e.24xlarge", "L40S", 4, 48),
    Instance("ml.g5.24xlarge", "A10G", 4, 24),
    Instance("ml.g6.24xlarge", "L4", 4, 24),
)
INSTANCES = MachineTypes(
    "SageMaker",
    "instance",
    _CHOSEN,
    further=_FURTHER,
    names={
        "b200": "B200",
        "gb200": None,
        "h200": "H200",
        "h100": "H100",
        "a100": "A100-80GB",
        "a100pcie": None,
        "a10040gb": "A100-40GB",
        "a100sxm440gb": "A100-40GB",
        "a10g": "A10G",
        "rtxpro6000": "RTX-PRO-6000",
        "l40s": "L40S",
        "l40": None,
        "l4": "L4",
    },
)
