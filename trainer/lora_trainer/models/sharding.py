"""Shards the frozen base over the GPUs that train together, with torch's FSDP2; LoRA stays whole on each.

A layer's weights are gathered for its forward pass and again for its backward pass, and dropped in between. They don't
train, so FSDP2 has no gradients to share out, and 4-bit weights need no common type with anything: they are gathered as
the bytes they are. The layers must all be gathered by all processes in the same order, so all compute as many passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from lora_trainer.models.experts import has_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from lora_contract.hyperparameters import Hyperparameters

GATHERED_LAYERS = 2
"""So many layers are whole at a time: the one that is computed, and the next."""


def can_shard(config: PretrainedConfig, parameters: Hyperparameters) -> bool:
    """Whether the base of a training can be sharded: not with experts, DoRA (it reads weights elsewhere) or `kto`.

    `kto` looks at other answers before each step, in as many passes as a process has.
    """
    return not has_experts(config) and not parameters.use_dora and parameters.method != "kto"


def shard_base(model: torch.nn.Module, device: str) -> int:
    """Shard the frozen weights of each layer. Returns the number of layers."""
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        lora = {parameter for parameter in layer.parameters() if parameter.requires_grad}
        # Each layer is a root of its own here, and by default a root's weights stay gathered.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=lora)
    return len(layers)
