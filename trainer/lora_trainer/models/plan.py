"""How much memory a training takes, from the model's configuration alone: before anything is loaded or paid.

The model is built on the meta device, where weights have shapes and no bytes. Weights, constants,
LoRA and optimizer are counted; activations are estimated from the shapes, on the safe side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lora_contract.hyperparameters import Hyperparameters
from lora_contract.words import counted
from lora_trainer.errors import DoesNotFitError
from lora_trainer.models.experts import is_fused_expert
from lora_trainer.models.optimizer import choose_optimizer
from lora_trainer.models.shapes import known_config
from lora_trainer.models.targets import choose_targets, high_precision_modules, packing_decision

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_BLOCK, _NESTED_BLOCK = 64, 256
_STATE_BYTES = 16 * 4 + 4
"""Of each quantised tensor: its table of 16 values and the offset of its constants."""
_NESTED_TABLE_BYTES = 256 * 4
_LOGIT_TILE = (8192, 32768)
_CONTEXT_BYTES = 1 << 30
"""CUDA's own: context, kernels, workspaces."""
_FRAGMENTATION = 0.05
_MASK_BYTES = 4
"""For each pair of tokens: what the mask is made from and the mask, a byte each, and its form as a bf16 bias."""
_CARDS_GB = (16, 24, 48, 80, 96, 141, 180)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the GPU by purpose; `weights` while loading and after, `training` on top of it."""

    row_tokens: int
    micro_batch: int
    rank: int
    weights: dict[str, int]
    training: dict[str, int]
    loading_peak: int
    trainable: int
    checkpoint_bytes: int
    """What the base model takes on the disk, in bf16."""

    @property
    def weight_bytes(self) -> int:
        """The loaded base model."""
        return sum(self.weights.values())

    @property
    def total(self) -> int:
        """The most that the GPU holds at once while training."""
        return self.weight_bytes + sum(self.training.values())

    @property
    def adapter_bytes(self) -> int:
        """The published adapter: bf16."""
        return 2 * self.trainable


def plan_memory(
    config: PretrainedConfig,
    parameters: Hyperparameters,
    *,
    row_tokens: int,
    micro_batch: int,
    dtype: torch.dtype = torch.bfloat16,
    optimizer_bytes: int | None = None,
    masked: bool = False,
) -> MemoryPlan:
    """The plan for one micro-batch of `micro_batch` rows with `row_tokens` tokens each.

    `optimizer_bytes` is per trained weight; None: of the optimizer that a GPU would be given. `masked` says
    whether packed examples are kept apart by a mask of all tokens against all, see `lora_trainer.models.attention`.

    Raises:
        HyperparametersInvalidError: experts were asked for and can't be trained.
        BaseModelUnknownError: no module can carry LoRA.
    """
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    weights = _weights(model, dtype)
    trainable = _trainable(model, parameters)
    if optimizer_bytes is None:
        optimizer_bytes = choose_optimizer(trainable, is_gpu=True).state_bytes
    largest = _largest_dequantised(model, dtype)
    tokens = row_tokens * micro_batch
    training = {
        "LoRA weights, fp32": 4 * trainable,
        "LoRA gradients, fp32": 4 * trainable,
        "optimizer": optimizer_bytes * trainable,
        "layer inputs kept": _layers(model) * tokens * config.get_text_config().hidden_size * dtype.itemsize,
        "one layer recomputed": tokens * _activations_per_token(model, parameters) * dtype.itemsize,
        # Once for the product, once more where the backward pass wants it transposed.
        "weights of one layer, dequantised": 2 * largest,
        "logits, by tiles": _logit_tile_bytes(config, tokens),
        "mask of packed examples": _MASK_BYTES * tokens**2 if masked else 0,
    }
    subtotal = sum(weights.values()) + sum(training.values())
    training["CUDA and fragmentation"] = _CONTEXT_BYTES + int(_FRAGMENTATION * subtotal)
    return MemoryPlan(
        row_tokens=row_tokens,
        micro_batch=micro_batch,
        rank=parameters.rank,
        weights=weights,
        training=training,
        loading_peak=sum(weights.values()) + _loading_transient(model, dtype),
        trainable=trainable,
        checkpoint_bytes=2 * sum(parameter.numel() for parameter in model.parameters()),
    )


def largest_fitting_micro_batch(plan: MemoryPlan, limit: int, gpu_bytes: int) -> int:
    """How many rows per forward pass fit, at most `limit`, given the plan for one row; 0 where none does."""
    per_row = sum(plan.training[name] for name in ("layer inputs kept", "one layer recomputed", "logits, by tiles"))
    spare = gpu_bytes - plan.total
    if spare < 0 or plan.loading_peak > gpu_bytes:
        return 0
    return min(limit, 1 + int(spare / (per_row * (1 + _FRAGMENTATION))))


def check_plan(plan: MemoryPlan, gpu_bytes: int, gpu_name: str) -> None:
    """Refuse what can't fit.

    Raises:
        DoesNotFitError: with the figures and the remedy.
    """
    needed = max(plan.total, plan.loading_peak)
    if needed <= gpu_bytes:
        return
    card = next((size for size in _CARDS_GB if size * 1e9 >= needed), None)
    larger = f"choose a GPU with {card} GB or more" if card else "choose a smaller base model"
    raise DoesNotFitError(
        f"The training needs {needed / 1e9:.1f} GB of GPU memory (weights {plan.weight_bytes / 1e9:.1f} GB) "
        f"at rank {plan.rank} and {plan.row_tokens} tokens a row, but {gpu_name} has {gpu_bytes / 1e9:.1f} GB.",
        f"Lower max_length, or {larger}.",
    )


def format_plan(plan: MemoryPlan, *, gpu_name: str | None = None, gpu_bytes: int | None = None) -> str:
    """The plan as a table for people."""
    lines = [
        f"{counted(plan.micro_batch, 'row')} of {plan.row_tokens} tokens per forward pass, rank {plan.rank}",
        "",
        *_rows(plan.weights),
        _row("weights", plan.weight_bytes),
        "",
        *_rows(plan.training),
        _row("total while training", plan.total),
        _row("peak while loading", plan.loading_peak),
        "",
        _row(f"adapter ({plan.trainable:,} weights)", plan.adapter_bytes),
        _row("base model on the disk", plan.checkpoint_bytes),
    ]
    if gpu_bytes is not None:
        fits = max(plan.total, plan.loading_peak) <= gpu_bytes
        lines += ["", f"{'fits' if fits else 'DOES NOT FIT'} on {gpu_name} ({gpu_bytes / 1e9:.0f} GB)"]
    return "\n".join(lines)


def _rows(sizes: dict[str, int]) -> Iterator[str]:
    return (_row(f"  {name}", size) for name, size in sizes.items() if size)


def _row(name: str, size: int) -> str:
    return f"{name:<42}{size / 1e9:>9.2f} GB" if size >= 1e8 else f"{name:<42}{size / 1e6:>9.2f} MB"


def plan_for_base(
    base_model: str, parameters: Hyperparameters, *, row_tokens: int, micro_batch: int, volume: Path
) -> MemoryPlan:
    """The plan for a model by name; a well-known one is planned without asking the hub.

    Raises:
        BaseModelError: the model can't be found or read.
    """
    from lora_trainer.models.bases import BaseModels
    from lora_trainer.models.loading import load_config

    config = known_config(base_model) or load_config(BaseModels(volume).find(base_model, parameters.base_revision))
    packing, _ = packing_decision(config.model_type, parameters.packing)
    return plan_memory(config, parameters, row_tokens=row_tokens, micro_batch=micro_batch, masked=packing)


def _weights(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, int]:
    quantised = dict(_quantised(model))
    experts = [p for name, p in quantised.items() if is_fused_expert(name, p)]
    linear = [p for name, p in quantised.items() if not is_fused_expert(name, p)]
    heads = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    rest = {id(p): p for name, p in model.named_parameters() if name not in quantised}
    return {
        "linear layers, 4 bits": sum(_packed_bytes(p) for p in linear),
        "experts, 4 bits": sum(_packed_bytes(p) for p in experts),
        "quantisation constants": sum(_constant_bytes(p) for p in quantised.values()) + _NESTED_TABLE_BYTES,
        "embeddings and head": sum(p.numel() for key, p in rest.items() if key in heads) * dtype.itemsize,
        "norms, routers, others": sum(p.numel() for key, p in rest.items() if key not in heads) * dtype.itemsize,
    }


def _quantised(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    kept = high_precision_modules(model.config.model_type)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not any(part in kept for part in name.split(".")):
            yield f"{name}.weight", module.weight
    yield from ((name, p) for name, p in model.named_parameters() if is_fused_expert(name, p))


def _packed_bytes(parameter: torch.Tensor) -> int:
    return math.ceil(parameter.numel() / 2)


def _constant_bytes(parameter: torch.Tensor) -> int:
    blocks = math.ceil(parameter.numel() / _BLOCK)
    return blocks + 4 * math.ceil(blocks / _NESTED_BLOCK) + _STATE_BYTES


def _trainable(model: PreTrainedModel, parameters: Hyperparameters) -> int:
    modules = [module for _, module in _carriers(model, parameters)]
    weights = sum(parameters.rank * (module.in_features + module.out_features) for module in modules)
    return weights + (sum(module.out_features for module in modules) if parameters.use_dora else 0)


def _carriers(model: PreTrainedModel, parameters: Hyperparameters) -> Iterator[tuple[str, nn.Linear]]:
    targets = choose_targets(model, target_experts=parameters.target_experts).modules
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(tuple(f".{target}" for target in targets)):
            yield name, module


def _layer_of(name: str) -> str | None:
    """`model.layers.7` of `model.layers.7.mlp.up_proj`; None outside the layers."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return None if at is None else ".".join(parts[: at + 1])


def _layers(model: PreTrainedModel) -> int:
    return len({_layer_of(name) for name, _ in model.named_parameters()} - {None})


def _activations_per_token(model: PreTrainedModel, parameters: Hyperparameters) -> int:
    """Elements per token that the widest layer keeps for its backward pass, with their gradients."""
    config = model.config.get_text_config()
    carriers = {name for name, _ in _carriers(model, parameters)}
    widths: dict[str, int] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or (layer := _layer_of(name)) is None:
            continue
        # A projection, what is made of it, and a copy for the next; LoRA keeps its input after dropout, too.
        kept = 3 * module.out_features + (2 * module.in_features if name in carriers else 0)
        widths[layer] = widths.get(layer, 8 * config.hidden_size) + kept
    chosen = getattr(config, "num_experts_per_tok", 0) or 0
    expert = chosen * (4 * (getattr(config, "moe_intermediate_size", None) or config.intermediate_size))
    return 2 * int(max(widths.values(), default=0) + expert + chosen * 2 * config.hidden_size)


def _largest_dequantised(model: PreTrainedModel, dtype: torch.dtype) -> int:
    by_layer: dict[str | None, int] = {}
    linear = 0
    for name, parameter in _quantised(model):
        if is_fused_expert(name, parameter):
            layer = _layer_of(name)
            by_layer[layer] = by_layer.get(layer, 0) + parameter.numel()
        else:
            linear = max(linear, parameter.numel())
    return max([linear, *by_layer.values()]) * dtype.itemsize


def _logit_tile_bytes(config: PretrainedConfig, tokens: int) -> int:
    rows, columns = _LOGIT_TILE
    return 3 * 4 * min(tokens, rows) * min(int(config.get_text_config().vocab_size), columns)


def _loading_transient(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """The largest parameter while it is merged: its pieces and the whole, before it is quantised."""
    experts = [p.numel() for name, p in _quantised(model) if is_fused_expert(name, p)]
    plain = max(p.numel() for name, p in model.named_parameters() if not is_fused_expert(name, p))
    return max([plain, *(2 * size for size in experts)]) * dtype.itemsize
