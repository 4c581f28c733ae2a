"""Which instance type of SageMaker has which GPUs.

Source: Amazon's pages of the EC2 instance types P4, P5, P6, G5, G6, G6e and G7e; that SageMaker trains on a type, its
own service model (`TrainingInstanceType`; a test holds each against it). All of them have a local NVMe disk, which
SageMaker uses instead of a volume. Of the types with the same GPUs that is taken whose memory holds a base model while
it is loaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


class InstanceUnknownError(ValueError):
    """SageMaker has no such instance; the text is a sentence that says what it has."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance type with its GPUs."""

    instance_type: str
    gpu_type: str
    """As the price table calls it."""
    gpu_count: int
    memory_gb: int
    """Of one GPU."""


_BY_GPU = {
    "B200": (Instance("ml.p6-b200.48xlarge", "B200", 8, 180),),
    "H200": (Instance("ml.p5en.48xlarge", "H200", 8, 141),),
    "H100": (Instance("ml.p5.4xlarge", "H100", 1, 80), Instance("ml.p5.48xlarge", "H100", 8, 80)),
    "A100-80GB": (Instance("ml.p4de.24xlarge", "A100-80GB", 8, 80),),
    "A100-40GB": (Instance("ml.p4d.24xlarge", "A100-40GB", 8, 40),),
    "RTX-PRO-6000": (
        Instance("ml.g7e.4xlarge", "RTX-PRO-6000", 1, 96),
        Instance("ml.g7e.12xlarge", "RTX-PRO-6000", 2, 96),
        Instance("ml.g7e.24xlarge", "RTX-PRO-6000", 4, 96),
        Instance("ml.g7e.48xlarge", "RTX-PRO-6000", 8, 96),
    ),
    "L40S": (
        Instance("ml.g6e.4xlarge", "L40S", 1, 48),
        Instance("ml.g6e.12xlarge", "L40S", 4, 48),
        Instance("ml.g6e.48xlarge", "L40S", 8, 48),
    ),
    "A10G": (
        Instance("ml.g5.4xlarge", "A10G", 1, 24),
        Instance("ml.g5.12xlarge", "A10G", 4, 24),
        Instance("ml.g5.48xlarge", "A10G", 8, 24),
    ),
    "L4": (
        Instance("ml.g6.4xlarge", "L4", 1, 24),
        Instance("ml.g6.12xlarge", "L4", 4, 24),
        Instance("ml.g6.48xlarge", "L4", 8, 24),
    ),
}
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
"""Those that are had by their own name only."""
INSTANCES = (*(instance for sizes in _BY_GPU.values() for instance in sizes), *_FURTHER)
"""All that a job can be given."""
_BY_TYPE = {instance.instance_type: instance for instance in INSTANCES}

_NAMES = {
    "b200": "B200",
    "h200": "H200",
    "h100": "H100",
    "a100": "A100-80GB",
    "a10040gb": "A100-40GB",
    "a100sxm440gb": "A100-40GB",
    "a10g": "A10G",
    "rtxpro6000": "RTX-PRO-6000",
    "l40s": "L40S",
    "l4": "L4",
}
"""A GPU's name means this one where one of them is part of it; of several the longest counts."""
_OTHER_GPUS = ("gb200", "a100pcie")
"""Their names hold one of those above, and AWS has none of it for this worker."""


def instance_for(gpu_type: str, gpu_count: int) -> Instance:
    """The instance with so many GPUs of a type, as the price table or a job writes it.

    Raises:
        InstanceUnknownError: SageMaker has no such GPU, or no instance with so many of them.
    """
    sizes = _BY_GPU[_gpu_named(gpu_type)]
    instance = next((each for each in sizes if each.gpu_count == gpu_count), None)
    if instance is None:
        counts = ", ".join(str(each.gpu_count) for each in sizes)
        raise InstanceUnknownError(
            f"SageMaker has no instance with {gpu_count} × {gpu_type:.50}; there may be {counts}"
        )
    return instance


def instance_named(instance_type: str) -> Instance:
    """The instance of this type.

    Raises:
        InstanceUnknownError: the table has none.
    """
    if instance_type not in _BY_TYPE:
        raise InstanceUnknownError(
            f"{instance_type!r:.60} is no instance type with GPUs that is known here; choose one of "
            f"{', '.join(sorted(_BY_TYPE))}"
        )
    return _BY_TYPE[instance_type]


def instance_of_endpoint(instance_type: str, gpu_type: str | None, gpu_count: int) -> Instance | None:
    """The instance of an endpoint that names its type or its GPU; None where it has what each job asks for.

    Raises:
        InstanceUnknownError: there is none, or the type has other GPUs than the endpoint's, by which runs are billed.
    """
    if not instance_type:
        return instance_for(gpu_type, gpu_count) if gpu_type else None
    instance = instance_named(instance_type)
    if gpu_type is None or _gpu_named(gpu_type) != instance.gpu_type or gpu_count != instance.gpu_count:
        raise InstanceUnknownError(
            f"{instance_type} has {instance.gpu_count} × {instance.gpu_type}, and bills go by the endpoint's GPU: set "
            "LORA_WORKER_ENDPOINT_GPU_TYPE and LORA_WORKER_ENDPOINT_GPU_COUNT (gpu_type and gpu_count in a routing "
            "table) to that"
        )
    return instance


def _gpu_named(gpu_type: str) -> str:
    plain = re.sub(r"[^a-z0-9]", "", gpu_type[:100].lower())
    found = [name for name in _NAMES if name in plain]
    # An L40 is no L4.
    is_other = any(other in plain for other in _OTHER_GPUS) or ("l40" in plain and "l40s" not in plain)
    if not found or is_other:
        raise InstanceUnknownError(
            f"SageMaker has no {gpu_type:.50} for this worker; choose one of {', '.join(_BY_GPU)}"
        )
    return _NAMES[max(found, key=len)]
