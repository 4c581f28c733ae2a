"""Compiles a model's layers with torch.compile where a training is long enough to earn it; off by default.

Each layer is compiled on its own and in place: the modules keep their names, so checkpoints and adapters do, and the
layers share what was compiled for the first of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

Compile: TypeAlias = Literal["off", "auto", "on", "failed"]
"""What the operator asks for; `failed`, if an earlier process of this execution could not compile."""

_LEAST_SECONDS = 7200
"""Compiling took others up to 15 minutes and saved 14 to 19 % of a step's time (axolotl): it pays from 1.8 hours on."""
_FASTEST_FLOPS = 433e12
"""Operations per second of the fastest training that was measured (docs/performance.md): a card is rarely faster."""
_FLOPS_PER_WEIGHT = 4
"""Operations per weight and token of LoRA's forward and backward pass."""


def should_compile(asked: Compile, *, tokens: int, weights: int, has_experts: bool) -> bool:
    """Whether to compile a training of `tokens` tokens in all its steps, each of which meets `weights` weights.

    Experts are left alone: they are unpacked by code that torch.compile can't follow.
    """
    if has_experts or asked in {"off", "failed"}:
        return False
    least_seconds = _FLOPS_PER_WEIGHT * weights * tokens / _FASTEST_FLOPS
    return asked == "on" or least_seconds >= _LEAST_SECONDS


def compile_layers(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> int:
    """Have each layer compiled at its first forward pass, for rows of any length. Returns the number of layers."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.compile(backend=backend, dynamic=True)
    return len(layers)


def is_compile_failure(error: BaseException) -> bool:
    """Whether an exception comes from torch.compile, so that the same training can go on without it."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)
