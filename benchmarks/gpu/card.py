"""Which card and which software a figure comes from."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from typing import Any

_PACKAGES = ("torch", "triton", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "flash-linear-attention")


def describe_card() -> dict[str, Any]:
    """The GPU, its driver, the versions that matter, the date."""
    import torch

    from lora_trainer.models.hardware import gpu_identity
    from lora_trainer.run.gpu import GpuMonitor

    gpu = GpuMonitor(wanted=torch.cuda.is_available(), **gpu_identity())
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "gpu": gpu.name,
        "driver": gpu.driver,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found |= {
            "memory_bytes": total,
            "free_bytes": free,
            "capability": ".".join(map(str, torch.cuda.get_device_capability())),
            "processors": torch.cuda.get_device_properties(0).multi_processor_count,
        }
    return found


def measure_ceilings() -> dict[str, float]:
    """What the card itself reaches: TFLOP/s of a large bf16 product, TB/s of a copy (bytes read and written)."""
    import torch

    size = 8192
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(1 << 31, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    product = _median_seconds(lambda: torch.mm(left, right))
    copy = _median_seconds(lambda: target.copy_(source))
    return {"bf16_tflops": 2 * size**3 / product / 1e12, "copy_tb_per_second": 2 * source.numel() / copy / 1e12}


def _median_seconds(work: Any, repeats: int = 10) -> float:
    import statistics

    import torch

    times = []
    for _ in range(repeats + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return statistics.median(times[3:])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
