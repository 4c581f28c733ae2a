"""What is said about the GPU comes from the GPU that trains."""

import time

import pytest
import torch

from lora_trainer.models.hardware import gpu_identity
from lora_trainer.run.gpu import GpuMonitor

pytestmark = pytest.mark.gpu


def test_gpu_and_driver_are_reported():
    gpu = GpuMonitor(wanted=True, **gpu_identity())
    assert gpu.name == torch.cuda.get_device_name(0)
    assert gpu.driver.split(".")[0].isdigit()
    assert gpu.count >= 1


def test_utilisation_and_memory_of_a_busy_gpu_are_reported():
    gpu = GpuMonitor(wanted=True)
    left = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    seen = []
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and max(seen, default=0) == 0:
        for _ in range(200):
            torch.mm(left, left)
        seen.append(gpu.sample().utilization or 0)
        torch.cuda.synchronize()
    assert max(seen) > 0
    assert gpu.sample().memory_bytes > left.numel() * left.element_size()
