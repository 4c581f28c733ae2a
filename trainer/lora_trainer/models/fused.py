"""Replaces the forward passes of LoRA layers and norms by equal ones that read and write the GPU's memory less often.

A LoRA layer of PEFT copies the base layer's result, then scales and adds activations in separate passes, forward and
backward, and keeps intermediate gradients. Here the matrix products add directly into the result. RMSNorm uses torch's
own kernel, which keeps its input in bf16 where transformers' module keeps a copy in fp32.
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
"""Norms that multiply by their weight, as torch's kernel does. Others, like Qwen3-Next's, multiply by 1 + weight."""


def fuse(model: nn.Module) -> int:
    """Replace the forward passes of all modules that can be fused. Returns the number of fused LoRA layers.

    Layers with dropout or DoRA keep PEFT's forward pass. The names of modules, their weights and the saved files stay
    the same.
    """
    fused = 0
    for module in model.modules():
        if isinstance(module, LoraLayer) and _can_be_fused(module):
            module.forward = MethodType(_lora_forward, module)
            fused += 1
        elif has_plain_norm(module):
            module.forward = MethodType(_norm_forward, module)
    return fused


def has_plain_norm(module: nn.Module) -> bool:
    """Whether a module is a norm that torch's kernel can compute."""
    return type(module).__name__ in _PLAIN_NORMS


def _can_be_fused(layer: Any) -> bool:
    """Whether a LoRA layer is on a linear layer, with one adapter, and has no dropout, bias or DoRA."""
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
    input_dtype = x.dtype
    a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    product: Callable[..., torch.Tensor] = _LoraProduct.apply
    return product(x.to(dtype), a.to(dtype), b.to(dtype), base, layer.scaling[_ADAPTER]).to(input_dtype)


class _LoraProduct(torch.autograd.Function):
    """`y = base(x) + scale · (x Aᵀ) Bᵀ`. Shapes: x (…, in), A (rank, in), B (out, rank), y (…, out); one dtype.

    The gradients follow from the chain rule. With g = dL/dy: dA = scale · (g B)ᵀ x, dB = scale · gᵀ (x Aᵀ),
    dx = g W + scale · (g B) A. W is frozen, so it has no gradient. In 4 bits it is dequantised for each product and
    freed after it.
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
        scaled_g_b = (g @ b).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = g @ _weight(ctx.base, g.dtype)
            grad_x.addmm_(scaled_g_b, a)
            grad_x = grad_x.view(x.shape)
        return grad_x, scaled_g_b.t() @ rows, (g.t() @ inner).mul_(ctx.scale), None, None


def _weight(base: Any, dtype: torch.dtype) -> torch.Tensor:
    """The base layer's weight, dequantised; shape (out, in)."""
    if isinstance(base, bnb.nn.Linear4bit):
        packed: Any = base.weight
        return dequantize_4bit(packed.data, packed.quant_state).to(dtype)
    return torch.as_tensor(base.weight)
