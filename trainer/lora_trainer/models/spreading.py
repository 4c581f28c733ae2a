"""Lays the layers of a base one after the other over several GPUs of one process, to ask a base that fits none alone.

One GPU computes at a time, so it is no way to train; but it needs no second process, and any model can be asked so.
accelerate moves what a layer gets and returns from one GPU to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

from lora_trainer.models.layers import outermost_layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def spread_layers(config: PretrainedConfig, devices: Sequence[str]) -> dict[str, str]:
    """The device of each layer, as many on each, and of all else, which is on the first; by the names of modules."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    modules = dict(model.named_modules())
    layers = outermost_layers(model)
    places = {name: devices[number * len(devices) // len(layers)] for number, name in enumerate(layers)}
    inside = tuple(f"{name}." for name in layers)
    for name, module in modules.items():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own and name not in places and not name.startswith(inside):
            places[name] = devices[0]
    return places
