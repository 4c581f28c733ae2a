"""Counts the memory that a model's layers keep per token between the forward and the backward pass, from their shapes.

It is counted for the fused layers (see `lora_trainer.models.fused`) in the GPU's precision, two bytes per number. Kept
are the inputs of norms, of LoRA and of the MLP's products, and the queries, keys, values and results of attention. A
frozen weight needs no input in the backward pass. If LoRA has dropout, each module keeps an input of its own, after
dropout, and the dropout mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from transformers import PreTrainedModel

    from lora_contract.hyperparameters import Hyperparameters

_BYTES = 2
_FP32 = 4
_MASK = 1
_ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
_GATED = ("gate_proj", "up_proj")
_LINEAR_ATTENTION = ("in_proj_qkvz", "in_proj_ba")
_LINEAR_ATTENTION_COPIES = 3
"""Linear attention keeps a projection, its convolution, and a copy that the chunked kernel makes."""


@dataclass(frozen=True)
class Activations:
    """Bytes per token of a forward pass."""

    all_layers: int
    """What all layers keep together if nothing is recomputed."""
    widest_layer: int
    """What the widest layer keeps; if layers are recomputed, only one is kept at a time."""
    layer_gradients: int
    """The gradients inside of one layer that exist at the same time."""
    spared_if_lean: int = 0
    """How much less all layers keep if each MLP computes its gated product again; 0 where that can't be done."""
    lean_gradients: int = 0
    """What the backward pass of one such MLP holds in addition."""


def count_activations(
    model: PreTrainedModel,
    parameters: Hyperparameters,
    carriers: Collection[str],
    *,
    masked: bool,
    expert_lora: bool = False,
) -> Activations:
    """Count the activations of a model on the meta device.

    `carriers` has the names of the modules that carry LoRA. `masked` says whether attention goes through SDPA with a
    mask, `expert_lora` whether routed experts carry LoRA.
    """
    layers: dict[str, int] = {}
    widest_product = 0
    gated = list(_gated_widths(model, parameters, carriers))
    for name, module in model.named_modules():
        if (layer := layer_of(name)) is None:
            continue
        layers[layer] = layers.get(layer, 0) + _module_bytes(
            model, name, module, parameters, carries_lora=name in carriers, masked=masked
        )
        if isinstance(module, nn.Linear) and ".experts." not in name:
            widest_product = max(widest_product, module.out_features, module.in_features)
    experts = _experts_bytes(model, parameters.rank if expert_lora else 0)
    widest = max(layers.values(), default=0) + experts
    with_experts = sum(1 for layer in layers if _has_experts(model, layer)) if experts else 0
    return Activations(
        all_layers=sum(layers.values()) + with_experts * experts,
        widest_layer=widest,
        layer_gradients=_BYTES * widest_product + experts,
        spared_if_lean=2 * _BYTES * sum(gated),
        lean_gradients=2 * _BYTES * max(gated, default=0),
    )


def _gated_widths(model: PreTrainedModel, parameters: Hyperparameters, carriers: Collection[str]) -> Iterator[int]:
    """The inner width of each MLP whose gated product can be computed again in the backward pass."""
    from lora_trainer.models.fused import is_gated_mlp

    if parameters.dropout or parameters.use_dora:
        return
    for name, module in model.named_modules():
        if is_gated_mlp(module) and f"{name}.down_proj" in carriers:
            mlp: Any = module
            yield mlp.down_proj.in_features


def layer_of(name: str) -> str | None:
    """`model.layers.7` of `model.layers.7.mlp.up_proj`; None outside the layers."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return None if at is None else ".".join(parts[: at + 1])


def _module_bytes(
    model: PreTrainedModel,
    name: str,
    module: nn.Module,
    parameters: Hyperparameters,
    *,
    carries_lora: bool,
    masked: bool,
) -> int:
    """Bytes per token that one module keeps."""
    leaf = name.rsplit(".", 1)[-1]
    if type(module).__name__.endswith("Norm"):
        return _norm_bytes(model, leaf, module)
    if not isinstance(module, nn.Linear):
        return 0
    lora_bytes = _lora_bytes(leaf, module, parameters) if carries_lora else 0
    return _BYTES * _linear_numbers(model, leaf, module, masked=masked) + lora_bytes


def _norm_bytes(model: PreTrainedModel, leaf: str, norm: Any) -> int:
    from lora_trainer.models.fused import has_plain_norm

    width: int = norm.weight.numel()
    text = model.config.get_text_config()
    if leaf == "q_norm":
        width *= text.num_attention_heads
    elif leaf == "k_norm":
        width *= text.num_key_value_heads
    return width * (_BYTES if has_plain_norm(norm) else _FP32)


def _linear_numbers(model: PreTrainedModel, leaf: str, linear: nn.Linear, *, masked: bool) -> int:
    """How many numbers per token are kept of a linear layer's input or output, apart from what LoRA keeps."""
    if leaf in {"k_proj", "v_proj"} and masked:
        text = model.config.get_text_config()
        return int(linear.out_features * (text.num_attention_heads // text.num_key_value_heads))
    if leaf in _ATTENTION_INPUTS:
        return linear.out_features
    if leaf in {"o_proj", "out_proj"}:
        return linear.in_features
    if leaf == "gate_proj":
        return 2 * linear.out_features  # before and after the activation function
    if leaf == "up_proj":
        return linear.out_features
    return _LINEAR_ATTENTION_COPIES * linear.out_features if leaf in _LINEAR_ATTENTION else 0


def _lora_bytes(leaf: str, linear: nn.Linear, parameters: Hyperparameters) -> int:
    """Bytes per token that LoRA on this linear layer keeps: its input, and the product with matrix A."""
    inner = _BYTES * parameters.rank
    if parameters.dropout or parameters.use_dora:
        return inner + (_BYTES + _MASK) * linear.in_features
    # Projections that share an input keep it once. The input of o_proj is attention's result, counted there.
    first = leaf in {"q_proj", "gate_proj", "in_proj_qkvz", "down_proj"}
    return inner + (_BYTES * linear.in_features if first else 0)


def _experts_bytes(model: PreTrainedModel, rank: int) -> int:
    """Bytes per token that the chosen experts of one layer keep: gates, products and results; and the router.

    LoRA on them (of a `rank` above 0) keeps the inputs of both products, the products with its A matrices, and what
    it adds to gate and up.
    """
    text = model.config.get_text_config()
    if not any(".experts" in name for name, _ in model.named_modules()):
        return 0
    width = getattr(text, "moe_intermediate_size", None) or text.intermediate_size
    experts: int = getattr(text, "num_experts", None) or text.num_local_experts
    router = (2 * _FP32 + _BYTES) * experts
    numbers = 3 * width + text.hidden_size + ((3 * width + text.hidden_size + 2 * rank) if rank else 0)
    return int(text.num_experts_per_tok * _BYTES * numbers + router)


def _has_experts(model: PreTrainedModel, layer: str) -> bool:
    return any(part.startswith(f"{layer}.") and ".experts" in part for part, _ in model.named_modules())
