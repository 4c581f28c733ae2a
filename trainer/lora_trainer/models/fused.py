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
from transformers.activations import SiLUActivation

_ADAPTER = "default"
_PLAIN_NORMS = frozenset(
    {"LlamaRMSNorm", "MistralRMSNorm", "MixtralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "Qwen3MoeRMSNorm"}
)
"""Norms that multiply by their weight, as torch's kernel does. Others, like Qwen3-Next's, multiply by 1 + weight."""


_GATED_MLPS = frozenset({"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"})
"""MLPs that compute `down_proj(act_fn(gate_proj(x)) * up_proj(x))`."""


def fuse(model: nn.Module, *, lean: bool = False) -> int:
    """Replace the forward passes of all modules that can be fused. Returns the number of fused LoRA layers.

    Layers with dropout or DoRA keep PEFT's forward pass. The names of modules, their weights and the saved files stay
    the same. With `lean`, an MLP keeps only its gates and the values that they scale, and computes their product again
    in the backward pass: half the memory of its activations, for about 2 % of a step's time.
    """
    fused = 0
    for module in model.modules():
        if isinstance(module, LoraLayer) and _can_be_fused(module):
            module.forward = MethodType(_lora_forward, module)
            fused += 1
        elif has_plain_norm(module):
            module.forward = MethodType(_norm_forward, module)
        elif lean and is_gated_mlp(module) and isinstance(module.down_proj, LoraLayer):
            module.forward = MethodType(_mlp_forward, module)
    return fused


def has_plain_norm(module: nn.Module) -> bool:
    """Whether a module is a norm that torch's kernel can compute."""
    return type(module).__name__ in _PLAIN_NORMS


def is_gated_mlp(module: nn.Module) -> bool:
    """Whether a module is an MLP whose values are scaled by gates, through SiLU."""
    return type(module).__name__ in _GATED_MLPS and isinstance(module.act_fn, nn.SiLU | SiLUActivation)


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
    dtype, input_dtype = _compute_dtype(base), x.dtype
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
        y, inner = _forward(x, a, b, base, scale)
        ctx.save_for_backward(x, inner, a, b)
        ctx.base, ctx.scale = base, scale
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, inner, a, b = ctx.saved_tensors
        wants_x = ctx.needs_input_grad[0]
        return *_backward(gradients[0], x, inner, a, b, ctx.base, ctx.scale, wants_x=wants_x), None, None


def _mlp_forward(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    gate, value, down = mlp.gate_proj(x), mlp.up_proj(x), mlp.down_proj
    if down.disable_adapters or down.merged or not _can_be_fused(down):
        return torch.as_tensor(down(mlp.act_fn(gate) * value))
    base, input_dtype = down.base_layer, gate.dtype
    dtype = _compute_dtype(base)
    a, b = down.lora_A[_ADAPTER].weight, down.lora_B[_ADAPTER].weight
    product: Callable[..., torch.Tensor] = _GatedProduct.apply
    scale = down.scaling[_ADAPTER]
    return product(gate.to(dtype), value.to(dtype), a.to(dtype), b.to(dtype), base, scale).to(input_dtype)


class _GatedProduct(torch.autograd.Function):
    """`_LoraProduct` of x = silu(gate) · value, of which x is computed again in the backward pass.

    Shapes: gate and value (…, in), the others as there. With dx from there: dvalue = dx · silu(gate), and
    dgate = dx · value · silu'(gate).
    """

    @staticmethod
    def forward(
        ctx: Any, gate: torch.Tensor, value: torch.Tensor, a: torch.Tensor, b: torch.Tensor, base: Any, scale: float
    ) -> torch.Tensor:
        x = nn.functional.silu(gate).mul_(value)
        y, inner = _forward(x, a, b, base, scale)
        ctx.save_for_backward(gate, value, inner, a, b)
        ctx.base, ctx.scale = base, scale
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        gate, value, inner, a, b = ctx.saved_tensors
        opened = nn.functional.silu(gate)
        grad_x, grad_a, grad_b = _backward(gradients[0], opened * value, inner, a, b, ctx.base, ctx.scale)
        grad_value = opened.mul_(grad_x)
        grad_gate = torch.ops.aten.silu_backward(grad_x.mul_(value), gate)
        return grad_gate, grad_value, grad_a, grad_b, None, None


def _forward(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, base: Any, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result of a LoRA layer, and x Aᵀ."""
    inner = x.reshape(-1, x.shape[-1]) @ a.t()
    y: torch.Tensor = base(x).to(x.dtype)
    y.view(-1, y.shape[-1]).addmm_(inner, b.t(), alpha=scale)
    return y, inner


def _backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    inner: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    base: Any,
    scale: float,
    *,
    wants_x: bool = True,
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The gradients of x (None where it is not wanted), A and B."""
    rows, g = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    scaled_g_b = (g @ b).mul_(scale)
    grad_x = None
    if wants_x:
        grad_x = g @ _weight(base, g.dtype)
        grad_x.addmm_(scaled_g_b, a)
        grad_x = grad_x.view(x.shape)
    return grad_x, scaled_g_b.t() @ rows, (g.t() @ inner).mul_(scale)


def _compute_dtype(base: Any) -> torch.dtype:
    """The type in which a base layer multiplies."""
    dtype: torch.dtype = base.compute_dtype if isinstance(base, bnb.nn.Linear4bit) else base.weight.dtype
    return dtype


def _weight(base: Any, dtype: torch.dtype) -> torch.Tensor:
    """The base layer's weight, dequantised; shape (out, in)."""
    if isinstance(base, bnb.nn.Linear4bit):
        packed: Any = base.weight
        return dequantize_4bit(packed.data, packed.quant_state).to(dtype)
    return torch.as_tensor(base.weight)
