"""Shards the frozen base over the GPUs that train together, with torch's FSDP2; LoRA stays whole on each.

Each layer is sharded as soon as its last weight was read and quantised, so a process never holds more than its share,
what is outside of the layers, and one whole layer: a base may be larger than any of the GPUs. transformers can't do
this for weights that it quantises: its own FSDP2 and tensor parallelism refuse bitsandbytes, and accelerate quantises
the whole base in main memory first.

A layer's weights are gathered for its forward pass and again for its backward pass, and dropped in between. They don't
train, so FSDP2 has no gradients to share out, and 4-bit weights need no common type with anything: they are gathered as
the bytes they are. The layers must all be gathered by all processes in the same order, so all compute as many passes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import bitsandbytes as bnb
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import core_model_loading, modeling_utils

from lora_trainer.models.layers import layer_of, outermost_layers

if TYPE_CHECKING:
    from lora_contract.hyperparameters import Hyperparameters

GATHERED_LAYERS = 2
"""So many layers are whole at a time: the one that is computed, and the next."""


def can_shard(parameters: Hyperparameters) -> bool:
    """Whether the base of a training can be sharded: not with DoRA, which needs all weights before the first pass."""
    return not parameters.use_dora


@contextmanager
def sharding_layers(device: str) -> Iterator[None]:
    """While this context is open, `from_pretrained` shards each layer over all processes when its weights are there."""
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    put: Any = core_model_loading.set_param_for_module

    def put_and_shard(model: Any, name: str, value: Any, loading_info: Any, quantizer: Any) -> None:
        put(model, name, value, loading_info, quantizer)
        del value  # the layer shall hold it alone
        prefix, layer = layer_of(model, name)
        # A buffer may come after the last weight, when the layer is sharded already.
        if layer is None or isinstance(layer, FSDPModule) or any(weight.is_meta for weight in layer.parameters()):
            return
        if quantizer is not None:
            quantizer.finish_experts(model, f"{prefix}.")
        _shard_layer(layer, mesh)

    with (
        _reading_one_by_one(),
        _replaced(core_model_loading, "set_param_for_module", put_and_shard),
        # It would reserve room for the whole base.
        _replaced(modeling_utils, "caching_allocator_warmup", lambda *_: None),
        # It would move each weight to the device where it is already, and can't do that with a part of one.
        _replaced(modeling_utils, "accelerate_dispatch", lambda *_: None),
    ):
        yield


@contextmanager
def _replaced(module: ModuleType, name: str, function: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def _reading_one_by_one() -> Iterator[None]:
    """While this context is open, transformers brings a weight to the GPU when it is due, not by threads of its own.

    Those are off where it quantises. In bf16 they would have the whole base on the GPU before the first layer is there.
    """
    variable = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def _shard_layer(layer: torch.nn.Module, mesh: DeviceMesh) -> None:
    # Each layer is a root of its own here, and by default a root's weights stay gathered.
    fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    layer.requires_grad_(False)
    # Otherwise transformers takes the weights for some that the files lack, and draws them at random.
    for marked in (*layer.parameters(), *(module for module in layer.modules() if not list(module.buffers()))):
        cast("Any", marked)._is_hf_initialized = True  # noqa: SLF001 there is no public way to say so


def count_layers(model: torch.nn.Module) -> tuple[int, int]:
    """How many layers a model has, and how many of them are sharded."""
    layers = outermost_layers(model).values()
    return len(layers), sum(isinstance(layer, FSDPModule) for layer in layers)


@contextmanager
def posing_as_whole(model: torch.nn.Module) -> Iterator[None]:
    """While this context is open, sharded weights have empty ones in their place, of the kind that PEFT looks for.

    PEFT takes a part of a weight for all of it, and asks 4-bit weights how they were quantised.
    """
    parts = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    ]
    for module, name, parameter in parts:
        module.register_parameter(name, _empty(module, name, parameter))
    try:
        yield
    finally:
        for module, name, parameter in parts:
            module.register_parameter(name, parameter)


def _empty(module: Any, name: str, parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
    if not isinstance(module, bnb.nn.Linear4bit) or name != "weight":
        return torch.nn.Parameter(data, requires_grad=False)
    state: Any = cast("Any", module).quant_state
    packed: torch.nn.Parameter = bnb.nn.Params4bit(
        data,
        requires_grad=False,
        quant_state=state,
        quant_type=state.quant_type,
        compress_statistics=state.nested,
        bnb_quantized=True,
    )
    return packed


@contextmanager
def gathered(model: torch.nn.Module, name: str) -> Iterator[None]:
    """While this context is open, the layer of the module with this name is whole in each process, if it is sharded.

    All processes must open it for the same layers, in the same order.
    """
    _, layer = layer_of(model, f"{name}.")
    if not isinstance(layer, FSDPModule):
        yield
        return
    layer.unshard()
    try:
        yield
    finally:
        layer.reshard()
