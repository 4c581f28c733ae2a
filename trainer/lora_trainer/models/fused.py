"""The same arithmetic as PEFT's and transformers' modules in fewer passes over the GPU's memory.

A LoRA layer of PEFT copies the base's result, multiplies and adds whole activations once each, forward and backward,
and keeps gradients that are added up later. Here the products add into the result themselves. RMSNorm goes through
torch's own kernel, which keeps its input in bf16 instead of a copy in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora import LoraLayer
from torch import nn

_ADAPTER = "default"
_PLAIN_NORMS = frozenset(
    {"LlamaRMSNorm", "MistralRMSNorm", "MixtralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "Qwen3MoeRMSNorm"}
)
"""Norms that multiply by their weight; others, as Qwen3-Next's, by one more than it."""


def fuse(model: nn.Module) -> int:
    """Replace the forward passes of what can be fused; how many LoRA layers were.

    Layers with dropout or DoRA stay as PEFT made them. Names, weights and what is saved don't change.
    """
    fused = 0
    for module in model.modules():
        if isinstance(module, LoraLayer) and _is_plain(module):
            module.forward = MethodType(_lora_forward, module)
            fused += 1
        elif has_plain_norm(module):
            module.forward = MethodType(_norm_forward, module)
    return fused


def has_plain_norm(module: nn.Module) -> bool:
    """Whether a module is a norm that torch's kernel can compute."""
    return type(module).__name__ in _PLAIN_NORMS


def _is_plain(layer: Any) -> bool:
    return (
        isinstance(layer.get_base_layer(), nn.Linear)
        and list(layer.lora_A) == [_ADAPTER]
        and not layer.lora_variant
        and isinstance(layer.lora_dropout[_ADAPTER], nn.Identity)
        and layer.lora_A[_ADAPTER].bias is None
        and layer.lora_B[_ADAPTER].bias is None
    )


def _norm_forward(norm: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    weight = norm.weight.to(hidden_states.dtype)
    return nn.functional.rms_norm(hidden_states, weight.shape, weight, norm.variance_epsilon)


def _lora_forward(layer: Any, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    base = layer.base_layer
    if layer.disable_adapters or layer.merged:
        return torch.as_tensor(base(x))
    dtype = base.compute_dtype if isinstance(base, bnb.nn.Linear4bit) else base.weight.dtype
    given = x.dtype
    a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    product: Callable[..., torch.Tensor] = _LoraProduct.apply
    return product(x.to(dtype), a.to(dtype), b.to(dtype), base, layer.scaling[_ADAPTER]).to(given)


class _LoraProduct(torch.autograd.Function):
    """`y = base(x) + scale · (x Aᵀ) Bᵀ`. Shapes: x (…, in), A (rank, in), B (out, rank), y (…, out); one dtype.

    Source of the gradients: with g = dL/dy, dA = scale · (g B)ᵀ x, dB = scale · gᵀ (x Aᵀ),
    dx = g W + scale · (g B) A. W is frozen; in 4 bits it is unpacked for the product and kept by nobody.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, base: nn.Linear, scale: float
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ a.t()
        y: torch.Tensor = base(x).to(x.dtype)
        y.view(-1, y.shape[-1]).addmm_(inner, b.t(), alpha=scale)
        ctx.save_for_backward(x, inner, a, b)
        ctx.base, ctx.scale = base, scale
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, inner, a, b = ctx.saved_tensors
        (gradient,) = gradients
        rows, g = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        back = (g @ b).mul_(ctx.scale)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = g @ _weight(ctx.base, g.dtype)
            to_x.addmm_(back, a)
            to_x = to_x.view(x.shape)
        return to_x, back.t() @ rows, (g.t() @ inner).mul_(ctx.scale), None, None


def _weight(base: Any, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(base, bnb.nn.Linear4bit):
        packed: Any = base.weight
        return dequantize_4bit(packed.data, packed.quant_state).to(dtype)
    return torch.as_tensor(base.weight)
