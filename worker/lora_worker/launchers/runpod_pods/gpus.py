"""Which GPUs of RunPod's pods a GPU of the price table means, and what an endpoint of pods says of them.

Source: RunPod's list of GPU types (docs, references/gpu-types) and its catalog, August 2026. The order is that in which
they are asked for: RunPod places a pod on exactly one type, and looks for no other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lora_worker.launchers.machine_types import longest_part

_OF_24_GB = ("NVIDIA L4", "NVIDIA RTX A5000", "NVIDIA GeForce RTX 3090")
_OF_16_GB = ("NVIDIA RTX A4000", "NVIDIA RTX A4500", "NVIDIA RTX 4000 Ada Generation")
_GPUS: dict[str, tuple[str, ...]] = {
    "a100": ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
    "h100": ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H100 NVL"),
    "h200": ("NVIDIA H200",),
    "b200": ("NVIDIA B200",),
    "rtxpro6000": (
        "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
    ),
    "l40": ("NVIDIA L40S", "NVIDIA L40", "NVIDIA RTX 6000 Ada Generation"),
    "rtx6000ada": ("NVIDIA RTX 6000 Ada Generation", "NVIDIA L40S", "NVIDIA L40"),
    "a40": ("NVIDIA A40", "NVIDIA RTX A6000"),
    "rtxa6000": ("NVIDIA RTX A6000", "NVIDIA A40"),
    "rtx4090": ("NVIDIA GeForce RTX 4090",),
    "l4": _OF_24_GB,
    "rtxa5000": _OF_24_GB,
    "rtx3090": _OF_24_GB,
    "rtxa4000": _OF_16_GB,
    "rtxa4500": _OF_16_GB,
    "rtx4000": _OF_16_GB,
    "v100": ("Tesla V100-SXM2-32GB", "Tesla V100-PCIE-32GB"),
}
"""By a part of the GPU's name, in small letters and digits; of several parts that fit the longest counts."""

_SHAPE = re.compile(r"(?P<type>[A-Za-z0-9-]{1,60}?)(?:x(?P<count>[1-8]))?")


@dataclass(frozen=True, slots=True)
class PodShape:
    """The GPUs of an endpoint's pods. `gpu_type` None: the one that each job asks for."""

    gpu_type: str | None
    gpu_count: int


def gpu_ids(gpu_type: object) -> tuple[str, ...]:
    """RunPod's ids of a GPU, in the order in which they are asked for; empty where pods have no such GPU."""
    if not isinstance(gpu_type, str):
        return ()
    return _GPUS.get(longest_part(_GPUS, gpu_type) or "", ())


def shape_fault(named: str, billed: PodShape) -> str | None:
    """Why pods that an endpoint names by such as `H100` or `H100x2` can't be had as they are billed, as the end of a
    sentence; None where they can, or where it names none."""
    if billed.gpu_type is not None and not gpu_ids(billed.gpu_type):
        return f"is to have the GPU {billed.gpu_type:.60}, which RunPod has no pods with"
    found = _SHAPE.fullmatch(named) if named else None
    if not named:
        return None
    if found is None or not gpu_ids(found["type"]):
        return "names no GPU that pods have, such as H100x2 behind its #"
    if gpu_ids(found["type"]) != gpu_ids(billed.gpu_type) or int(found["count"] or 1) != billed.gpu_count:
        return (
            f"names other GPUs than are billed there, {billed.gpu_count} × {billed.gpu_type or 'what a job asks for'}"
        )
    return None
