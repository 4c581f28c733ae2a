"""Base models of real shapes with random weights, made where they are used: no download, and no disk.

They go through the trainer's own `load_model`, quantiser and all: only where the bytes come from differs. A weight is
drawn when the loader asks for it, so that memory never holds more than it does with a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from lora_trainer.models import loading
from lora_trainer.models.bases import Base
from lora_trainer.models.hardware import Hardware
from lora_trainer.models.loading import load_model
from lora_trainer.models.shapes import known_config

_DEVIATION = 0.02
"""What the architectures themselves initialise their weights with."""

SCALED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("meta-llama/Meta-Llama-3-8B-Instruct", {"num_hidden_layers": 4}),
    "mistral": ("mistralai/Mistral-7B-Instruct-v0.3", {"num_hidden_layers": 6}),
    "qwen2": ("Qwen/Qwen2.5-7B-Instruct", {"num_hidden_layers": 4}),
    "qwen3": ("Qwen/Qwen3-8B", {"num_hidden_layers": 4}),
    "qwen3_moe": ("Qwen/Qwen3-30B-A3B-Instruct-2507", {"num_hidden_layers": 2}),
    "qwen3_next": ("Qwen/Qwen3-Next-80B-A3B-Instruct", {"num_hidden_layers": 4, "num_experts": 64}),
}
"""Each architecture at its real widths with few layers: one to three billion weights."""


def real_config(name: str, **changes: Any) -> PretrainedConfig:
    """The configuration of a well-known model, with some values changed.

    Raises:
        KeyError: the trainer's table of shapes doesn't hold it.
    """
    config = known_config(name)
    if config is None:
        raise KeyError(name)
    for key, value in changes.items():
        setattr(config, key, value)
    if "num_hidden_layers" in changes and getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    return config


def scaled_config(architecture: str) -> PretrainedConfig:
    """The configuration of an architecture with the layers that `SCALED` leaves it."""
    name, changes = SCALED[architecture]
    return real_config(name, **changes)


class _RandomWeight:
    """Stands for a tensor of a checkpoint: drawn when it is sliced, as one is read from a file."""

    def __init__(self, name: str, shape: torch.Size, device: str, dtype: torch.dtype, seed: int) -> None:
        self._name = name
        self._shape = shape
        self._device = device
        self._dtype = dtype
        self._seed = seed

    def __getitem__(self, _: Any) -> torch.Tensor:
        return random_weight(self._name, self._shape, self._device, self._dtype, self._seed)


def random_weight(name: str, shape: torch.Size, device: str, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """What a weight of this name could be before any training."""
    if name.endswith("norm.weight"):
        return torch.ones(shape, device=device, dtype=dtype)
    chance = torch.Generator(device).manual_seed(seed)
    return torch.empty(shape, device=device, dtype=dtype).normal_(0, _DEVIATION, generator=chance)


def load_random(config: PretrainedConfig, hardware: Hardware, **options: Any) -> Any:
    """A model with random weights through `lora_trainer.models.loading.load_model`; `options` are its own."""
    with _random_checkpoint(config, hardware):
        return load_model(Base("random weights", None, Path()), config, hardware, **options)


@contextmanager
def _random_checkpoint(config: PretrainedConfig, hardware: Hardware) -> Iterator[None]:
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(config, dtype=hardware.dtype)
    weights = {
        name: _RandomWeight(name, parameter.shape, hardware.device, hardware.dtype, seed)
        for seed, (name, parameter) in enumerate(bare.named_parameters())
    }

    class Loader:
        @staticmethod
        def from_pretrained(_: Path, **options: Any) -> Any:
            return type(bare).from_pretrained(None, state_dict=weights, **options)

    with mock.patch.object(loading, "AutoModelForCausalLM", Loader):
        yield


def active_weights(config: PretrainedConfig) -> int:
    """Weights that a token meets in a forward pass, the head with them: the N of 4N FLOP a token."""
    from lora_trainer.models.experts import is_fused_expert

    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(config)
    embeddings = bare.get_input_embeddings().weight
    text = config.get_text_config()
    total = 0
    for name, parameter in bare.named_parameters():
        if parameter is embeddings and not config.tie_word_embeddings:
            continue  # a table that is looked up, not multiplied
        share = text.num_experts_per_tok / parameter.shape[0] if is_fused_expert(name, parameter) else 1
        total += int(parameter.numel() * share)
    return total
