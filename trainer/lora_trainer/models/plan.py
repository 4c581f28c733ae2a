"""Computes how much GPU memory a training takes from the model's configuration alone, before anything is loaded.

The model is built on torch's meta device, where weights have a shape but no memory. Weights, quantisation constants,
LoRA and optimizer states are counted there. `lora_trainer.models.activations` counts what a forward pass keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.models.activations import count_activations, layer_of
from lora_trainer.models.attention import SDPA, VARLEN, choose_attention, mask_bytes
from lora_trainer.models.expert_lora import ExpertLoraSize, count_expert_lora
from lora_trainer.models.experts import is_fused_expert
from lora_trainer.models.memory_plan import OVERHEAD, MemoryPlan
from lora_trainer.models.optimizer import choose_optimizer
from lora_trainer.models.quantization import BF16, NF4, Quantization, choose_quantization
from lora_trainer.models.shapes import known_config
from lora_trainer.models.sharding import GATHERED_LAYERS
from lora_trainer.models.targets import Targets, high_precision_modules, packing_decision, targets_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_BLOCK, _NESTED_BLOCK = 64, 256
"""bitsandbytes keeps one constant per 64 weights, as a byte, and one fp32 number per 256 constants."""
_STATE_BYTES = 16 * 4 + 4
"""Per quantised tensor: a table of 16 fp32 values, and the fp32 offset of its constants."""
_NESTED_TABLE_BYTES = 256 * 4
_LOGIT_TILE = (8192, 32768)
"""Tokens and vocabulary entries for which the loss computes logits at a time."""
_CONTEXT_BYTES = 1 << 30
"""What CUDA itself takes: context, kernels, workspaces."""
_FRAGMENTATION = 0.05
_SHARDED = ("linear layers", "experts")


class Planner:
    """Plans the memory of one model with one set of hyperparameters, for any number of rows per forward pass.

    The shapes are counted once, by the constructor. `row_tokens` is the number of tokens of the longest row,
    `attention` the implementation that `choose_attention` chose, and `optimizer_bytes` the optimizer's bytes per
    trained weight; None: those of the one used on a GPU.

    Raises:
        HyperparametersInvalidError: the experts can't be trained, or not with these hyperparameters.
        BaseModelUnknownError: the model has no module that can carry LoRA.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        parameters: Hyperparameters,
        *,
        row_tokens: int,
        packed: bool = True,
        attention: str = VARLEN,
        dtype: torch.dtype = torch.bfloat16,
        quantize: bool = True,
        optimizer_bytes: int | None = None,
    ) -> None:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
        targets = targets_of(model, parameters)
        carriers = dict(_carriers(model, targets))
        experts = count_expert_lora(model, parameters.rank) if targets.routed_experts else ExpertLoraSize()
        self._row_tokens = row_tokens
        self._layers = _layers(model)
        self._packed = packed
        self._attention = attention
        self._quantization = NF4 if quantize else BF16
        self._rank = parameters.rank
        self._weights = _weights(model, dtype, quantize=quantize)
        self._trainable = _trainable(carriers, parameters) + experts.trained
        self._published = self._trainable - experts.trained + experts.published
        if optimizer_bytes is None:
            optimizer_bytes = choose_optimizer(self._trainable, is_gpu=True).state_bytes
        self._optimizer_bytes = optimizer_bytes
        self._activations = count_activations(
            model, parameters, carriers, masked=attention == SDPA, expert_lora=targets.routed_experts
        )
        self._inputs = _layers(model) * config.get_text_config().hidden_size * dtype.itemsize
        self._dequantised = _largest_dequantised(model, dtype) if quantize else 0
        self._vocabulary = config.get_text_config().vocab_size
        self._loading_transient = _loading_transient(model, dtype)
        self._checkpoint_bytes = 2 * sum(parameter.numel() for parameter in model.parameters())
        self.can_keep_activations = not (
            quantize and any(is_fused_expert(name, p) for name, p in model.named_parameters())
        )
        """False with 4-bit experts: without recomputing, all would be kept dequantised for the backward pass."""
        self.can_be_lean = self._activations.spared_if_lean > 0

    def plan(self, micro_batch: int, *, recompute: bool = True, lean: bool = False, shards: int = 1) -> MemoryPlan:
        """The plan for forward passes of `micro_batch` rows; the layers are sharded over so many GPUs."""
        tokens = self._row_tokens * micro_batch
        kept = self._activations
        held = (kept.widest_layer if recompute else 0) + (kept.lean_gradients if lean else 0)
        layer = tokens * (held + kept.layer_gradients) + self._dequantised
        all_layers = kept.all_layers - (kept.spared_if_lean if lean else 0)
        training = {
            "LoRA weights, fp32": 4 * self._trainable,
            "LoRA gradients, fp32": 4 * self._trainable,
            "optimizer": self._optimizer_bytes * self._trainable,
            "layer inputs kept": self._inputs * tokens if recompute else 0,
            "activations kept": 0 if recompute else all_layers * tokens,
            "one layer's backward pass": layer,
            # The backward pass of the head ends before that of the layers begins, so only the larger one counts.
            "logits, beyond that": max(_logit_bytes(self._vocabulary, tokens) - layer, 0),
            "masks": mask_bytes(self._attention, packed=self._packed, rows=micro_batch, row_tokens=self._row_tokens),
        }
        weights, transient = self._weights, self._loading_transient
        if shards > 1:
            whole = sum(size for name, size in weights.items() if name.startswith(_SHARDED)) // self._layers
            training["layers gathered"] = GATHERED_LAYERS * whole
            transient += whole  # a layer is sharded when all of it is there
            weights = {n: size // (shards if n.startswith(_SHARDED) else 1) for n, size in weights.items()}
        subtotal = sum(weights.values()) + sum(training.values())
        training[OVERHEAD] = _CONTEXT_BYTES + int(_FRAGMENTATION * subtotal)
        return MemoryPlan(
            row_tokens=self._row_tokens,
            micro_batch=micro_batch,
            recompute=recompute,
            lean=lean,
            quantization=self._quantization,
            rank=self._rank,
            weights=weights,
            training=training,
            loading_peak=sum(weights.values()) + transient,
            trainable=self._trainable,
            published=self._published,
            checkpoint_bytes=self._checkpoint_bytes,
        )

    def fit(self, most_rows: int, gpu_bytes: int, *, recompute: bool | None = None, shards: int = 1) -> MemoryPlan:
        """The fastest plan with at most `most_rows` rows per forward pass that fits into `gpu_bytes`.

        A plan that keeps all is preferred to a lean one, that to one with recomputing, and then one with more rows.
        `recompute=True` allows only plans with it, for a training whose memory ran out without. If no plan fits, the
        smallest is returned.
        """
        choices = [{"recompute": True}]
        if self.can_keep_activations and not recompute:
            lean = [{"recompute": False, "lean": True}] if self.can_be_lean else []
            choices = [{"recompute": False}, *lean, *choices]
        for choice in choices:
            for rows in range(most_rows, 0, -1):
                plan = self.plan(rows, **choice, shards=shards)
                if plan.needed <= gpu_bytes:
                    return plan
        return self.plan(1, recompute=True, shards=shards)


def plan_memory(
    config: PretrainedConfig, parameters: Hyperparameters, *, row_tokens: int, micro_batch: int, **options: Any
) -> MemoryPlan:
    """The plan for forward passes of `micro_batch` rows with recomputing. Options and exceptions are `Planner`'s."""
    return Planner(config, parameters, row_tokens=row_tokens, **options).plan(micro_batch)


def plan_for_base(
    base_model: str,
    parameters: Hyperparameters,
    *,
    row_tokens: int,
    micro_batch: int,
    volume: Path,
    gpu_bytes: int | None = None,
) -> MemoryPlan:
    """The plan for a model by its name. Those in `lora_trainer.models.shapes` are planned without the hub.

    Where `parameters` leave the quantisation open, it is the one that the trainer takes on a GPU with `gpu_bytes`, or
    4 bits where that is None.

    Raises:
        BaseModelError: the model can't be found or read.
    """
    from lora_trainer.models.bases import BaseModels
    from lora_trainer.models.hardware import Hardware
    from lora_trainer.models.loading import load_config

    config = known_config(base_model) or load_config(BaseModels(volume).find(base_model, parameters.base_revision))
    packing, _ = packing_decision(config.model_type, parameters.packing)
    # Plan for a GPU with bf16, which an endpoint has; the machine that makes the plan may have no GPU.
    hardware = Hardware("cuda:0", torch.bfloat16)
    attention = choose_attention(config, hardware)
    planner_of = planners(config, parameters, row_tokens=row_tokens, attention=attention, packed=packing)
    free_bytes = gpu_bytes or 0
    quantization = choose_quantization(
        parameters.quantization, hardware, lambda held: planner_of(held).fit(micro_batch, free_bytes), free_bytes
    )
    return planner_of(quantization).plan(micro_batch)


def planners(
    config: PretrainedConfig, parameters: Hyperparameters, **options: Any
) -> Callable[[Quantization], Planner]:
    """A function that gives the planner of each quantisation, and makes it once. Options are `Planner`'s."""

    @cache
    def planner_of(quantization: Quantization) -> Planner:
        return Planner(config, parameters, quantize=quantization == NF4, **options)

    return planner_of


def _weights(model: PreTrainedModel, dtype: torch.dtype, *, quantize: bool) -> dict[str, int]:
    """The bytes of the base model's weights, by kind."""
    layers = dict(_quantised(model))
    heads = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    rest = {id(p): p for name, p in model.named_parameters() if name not in layers}
    bits = 4 if quantize else 8 * dtype.itemsize

    def held(*, experts: bool) -> int:
        chosen = (p for name, p in layers.items() if is_fused_expert(name, p) is experts)
        return sum(_packed_bytes(p) if quantize else p.numel() * dtype.itemsize for p in chosen)

    constants = sum(_constant_bytes(p) for p in layers.values()) + (_NESTED_TABLE_BYTES if layers else 0)
    return {
        f"linear layers, {bits} bits": held(experts=False),
        f"experts, {bits} bits": held(experts=True),
        "quantisation constants": constants if quantize else 0,
        "embeddings and head": sum(p.numel() for key, p in rest.items() if key in heads) * dtype.itemsize,
        "norms, routers, others": sum(p.numel() for key, p in rest.items() if key not in heads) * dtype.itemsize,
    }


def _quantised(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters that are loaded in 4 bits where the base is quantised, with their names."""
    kept = high_precision_modules(model.config.model_type)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not any(part in kept for part in name.split(".")):
            yield f"{name}.weight", module.weight
    yield from ((name, p) for name, p in model.named_parameters() if is_fused_expert(name, p))


def _packed_bytes(parameter: torch.Tensor) -> int:
    return math.ceil(parameter.numel() / 2)


def _constant_bytes(parameter: torch.Tensor) -> int:
    """The bytes of the constants with which one quantised parameter is dequantised."""
    blocks = math.ceil(parameter.numel() / _BLOCK)
    return blocks + 4 * math.ceil(blocks / _NESTED_BLOCK) + _STATE_BYTES


def _trainable(carriers: dict[str, nn.Linear], parameters: Hyperparameters) -> int:
    """How many weights LoRA on these modules trains."""
    modules = carriers.values()
    weights = sum(parameters.rank * (module.in_features + module.out_features) for module in modules)
    return weights + (sum(module.out_features for module in modules) if parameters.use_dora else 0)


def _carriers(model: PreTrainedModel, targets: Targets) -> Iterator[tuple[str, nn.Linear]]:
    """The modules that carry LoRA, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(tuple(f".{target}" for target in targets.modules)):
            yield name, module


def _layers(model: PreTrainedModel) -> int:
    return len({layer_of(name) for name, _ in model.named_parameters()} - {None})


def _largest_dequantised(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """The most bytes of dequantised weights that exist at the same time."""
    by_layer: dict[str | None, int] = {}
    linear = 0
    for name, parameter in _quantised(model):
        if is_fused_expert(name, parameter):
            layer = layer_of(name)
            by_layer[layer] = by_layer.get(layer, 0) + parameter.numel()
        else:
            linear = max(linear, parameter.numel())
    # One layer at a time is dequantised. Experts count twice: their backward pass needs a transposed copy, too.
    return max([linear, *(2 * size for size in by_layer.values())]) * dtype.itemsize


def _logit_bytes(vocabulary: int, tokens: int) -> int:
    """The bytes of the logits that the loss holds at a time."""
    rows, columns = _LOGIT_TILE
    return 2 * min(tokens, rows) * min(vocabulary, columns)


def _loading_transient(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """The bytes of the largest parameter while it is loaded. Fused experts exist twice: as parts and merged."""
    experts = [p.numel() for name, p in _quantised(model) if is_fused_expert(name, p)]
    plain = max(p.numel() for name, p in model.named_parameters() if not is_fused_expert(name, p))
    return max([plain, *(2 * size for size in experts)]) * dtype.itemsize
