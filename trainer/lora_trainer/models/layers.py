"""The layers of a model: those that transformers recomputes one by one, and that are sharded or spread one by one."""

from __future__ import annotations

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def outermost_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model by their names, in order. One that is a part of another layer (Zamba) is left out."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        # A module comes after the one that it is a part of.
        if isinstance(module, GradientCheckpointingLayer) and not name.startswith(tuple(f"{each}." for each in found)):
            found[name] = module
    return found


def layer_of(model: nn.Module, name: str) -> tuple[str, nn.Module | None]:
    """The outermost layer that a parameter belongs to, and its name; an empty name and None outside of the layers."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        prefix = ".".join(parts[:end])
        module = model.get_submodule(prefix)
        if isinstance(module, GradientCheckpointingLayer):
            return prefix, module
    return "", None
