"""Which GPU and precision are chosen is torch's answer, tried here with the answers of GPUs that are not at hand."""

from types import SimpleNamespace

import pytest
import torch

from lora_trainer.models.hardware import Hardware, detect_hardware, free_gpu_bytes, gpu_identity
from lora_trainer.models.optimizer import FUSED, PAGED_8BIT, PLAIN, choose_optimizer


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_computes_in_bf16_only_where_it_can(monkeypatch, has_bf16, dtype):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: asked.append(how) or has_bf16)
    assert detect_hardware() == Hardware("cuda:0", dtype)
    assert asked == [{"including_emulation": False}], "an emulated bf16 would be chosen for a V100"
    assert detect_hardware().is_gpu


def test_without_a_gpu_the_cpu_computes_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert detect_hardware() == Hardware("cpu", torch.float32)
    assert gpu_identity() == {"uuid": None, "name": None}


def test_memory_that_other_processes_hold_is_not_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (30 * 10**9, 80 * 10**9))
    assert free_gpu_bytes() == 30 * 10**9


@pytest.mark.parametrize("properties", [{"uuid": "1234-abcd"}, {}], ids=["uuid", "earlier torch"])
def test_a_gpu_is_named_by_its_uuid_where_torch_knows_it(monkeypatch, properties):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = SimpleNamespace(name="NVIDIA L4", **properties)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found if index == 0 else None)
    assert gpu_identity() == {"uuid": properties.get("uuid"), "name": "NVIDIA L4"}


def test_eight_bit_states_are_used_only_where_they_save_a_gigabyte():
    gigabyte = 1 << 30
    most = gigabyte // (FUSED.state_bytes - PAGED_8BIT.state_bytes)
    assert choose_optimizer(most, is_gpu=True) == FUSED
    assert choose_optimizer(most + 1, is_gpu=True) == PAGED_8BIT
    assert choose_optimizer(most + 1, is_gpu=False) == PLAIN
