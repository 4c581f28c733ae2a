"""The checks of GPU and kernels, with real bitsandbytes on the CPU, and with parts that are broken on purpose."""

import sys
import types
from importlib.machinery import ModuleSpec

import bitsandbytes
import pytest
import torch
import torch.nn.functional as F

from lora_trainer.errands import kernels
from lora_trainer.errors import UnfitError
from lora_trainer.models import attention
from lora_trainer.models.hardware import Hardware

pytestmark = pytest.mark.gpu_stack


@pytest.fixture
def gpu(monkeypatch):
    """A GPU in appearance: its tensors stay on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (79 * 10**9, 80 * 10**9))
    looks = types.SimpleNamespace(name="NVIDIA Pretence", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: looks)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(kernels, "_device", lambda **_: "cpu")
    monkeypatch.setattr(kernels, "detect_hardware", lambda: Hardware("cuda:0", torch.bfloat16))
    return monkeypatch


@pytest.fixture
def linear_attention():
    """Modules with the names of the compiled kernels, of which the convolution computes correctly."""

    def causal_conv1d_fn(inputs, weights):
        return F.conv1d(F.pad(inputs, (3, 0)), weights[:, None], groups=len(weights))

    made = {"causal_conv1d": types.ModuleType("causal_conv1d"), "fla": types.ModuleType("fla")}
    for name, module in made.items():
        module.__spec__ = ModuleSpec(name, None)
    made["causal_conv1d"].causal_conv1d_fn = causal_conv1d_fn
    with pytest.MonkeyPatch.context() as patch:
        for name, module in made.items():
            patch.setitem(sys.modules, name, module)
        yield made


def test_machine_without_a_gpu_says_so_where_none_is_needed():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "no GPU" in kernels.check_gpu(needs_gpu=False)
    for check in (kernels.check_gpu, kernels.check_quantisation, kernels.check_attention):
        with pytest.raises(UnfitError, match="no GPU"):
            check(needs_gpu=True)


def test_why_torch_sees_no_gpu_is_in_the_sentence(monkeypatch):
    def unavailable():
        import warnings

        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    with pytest.raises(UnfitError, match="driver on your system is too old"):
        kernels.check_gpu(needs_gpu=True)


def test_gpu_that_computes_correctly_is_named(gpu):
    assert kernels.check_gpu(needs_gpu=True).startswith("NVIDIA Pretence, 80 GB, sm_90")


def test_gpu_whose_memory_is_in_use_fails(gpu):
    gpu.setattr(torch.cuda, "mem_get_info", lambda _: (40 * 10**9, 80 * 10**9))
    with pytest.raises(UnfitError, match=r"Only 40\.0 of 80\.0 GB"):
        kernels.check_gpu(needs_gpu=True)


@pytest.mark.parametrize("wrong", [1.1, float("nan")])
def test_gpu_that_computes_wrongly_fails(gpu, wrong):
    gpu.setattr(torch.Tensor, "cuda", lambda tensor: tensor * wrong)
    with pytest.raises(UnfitError, match="matrix product gives wrong numbers"):
        kernels.check_gpu(needs_gpu=True)


def test_real_bitsandbytes_agrees_with_the_published_definition():
    assert "agrees with the reference" in kernels.check_quantisation(needs_gpu=False)


def test_values_restored_wrongly_from_4_bits_fail(monkeypatch):
    real = bitsandbytes.functional.dequantize_4bit
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", lambda *given: real(*given).roll(1))
    with pytest.raises(UnfitError, match="of 4-bit values wrongly"):
        kernels.check_quantisation(needs_gpu=False)


def test_wrong_product_with_4_bit_weights_fails(monkeypatch):
    real = bitsandbytes.matmul_4bit
    monkeypatch.setattr(bitsandbytes, "matmul_4bit", lambda *given, **named: real(*given, **named) * 2)
    with pytest.raises(UnfitError, match="multiplying with 4-bit weights, gives wrong numbers"):
        kernels.check_quantisation(needs_gpu=False)


def test_real_attention_agrees_with_its_formula():
    assert "SDPA" in kernels.check_attention(needs_gpu=False)


def test_attention_that_sees_later_tokens_fails(monkeypatch):
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *given, is_causal: real(*given))
    with pytest.raises(UnfitError, match="SDPA"):
        kernels.check_attention(needs_gpu=False)


def packed(query, key, value, bounds):
    parts = [
        F.scaled_dot_product_attention(*(t[:, :, a:b] for t in (query, key, value)), is_causal=True) for a, b in bounds
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def test_packed_attention_is_checked_on_a_gpu(gpu):
    gpu.setattr(attention, "has_varlen", lambda: True)
    right = [(0, 20), (20, 48)]
    gpu.setattr(attention, "varlen_attention", lambda _, q, k, v, *rest, **named: packed(q, k, v, right))
    assert "varlen" in kernels.check_attention(needs_gpu=True)


def test_packed_attention_that_mixes_examples_fails(gpu):
    gpu.setattr(attention, "has_varlen", lambda: True)
    gpu.setattr(attention, "varlen_attention", lambda _, q, k, v, *rest, **named: packed(q, k, v, [(0, 48)]))
    with pytest.raises(UnfitError, match="varlen"):
        kernels.check_attention(needs_gpu=True)


def test_kernels_of_linear_attention_are_compared_with_a_reference(gpu, linear_attention, monkeypatch):
    monkeypatch.setattr(kernels, "_device", lambda **_: "cuda:0")
    assert "agrees with the reference" in kernels.check_linear_attention(needs_gpu=True)
    monkeypatch.setattr(linear_attention["causal_conv1d"], "causal_conv1d_fn", lambda inputs, _: inputs)
    with pytest.raises(UnfitError, match="causal_conv1d"):
        kernels.check_linear_attention(needs_gpu=True)


def test_image_without_these_kernels_says_so():
    assert "not installed" in kernels.check_linear_attention(needs_gpu=False)
