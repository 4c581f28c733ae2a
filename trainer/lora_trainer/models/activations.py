"""What the layers of a model keep of each token between their forward and backward passes, from their shapes.

Counted as the fused layers keep it (see `lora_trainer.models.fused`), in the precision of the GPU, two bytes a number:
inputs of norms, of LoRA, of the MLP's products; queries, keys and values as attention sees them, and what it gives. A
weight that is frozen keeps no input. Where LoRA has dropout, each layer keeps its own dropped input and a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Collection

    from transformers import PreTrainedModel

    from lora_contract.hyperparameters import Hyperparameters

_BYTES = 2
_FP32 = 4
_MASK = 1
_ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
_GATED = ("gate_proj", "up_proj")
_LINEAR_ATTENTION = ("in_proj_qkvz", "in_proj_ba")
_LINEAR_ATTENTION_COPIES = 3
"""A projection, its convolution, and what the chunked kernel makes of it."""


@dataclass(frozen=True)
class Activations:
    """Bytes for each token of a forward pass."""

    all_layers: int
    """Kept by all layers together, where nothing is recomputed."""
    widest_layer: int
    """Kept by the one layer that is recomputed at a time."""
    coming_and_going: int
    """Gradients within a layer that are there at once."""


def count_activations(
    model: PreTrainedModel, parameters: Hyperparameters, carriers: Collection[str], *, masked: bool
) -> Activations:
    """Count them for a model on the meta device; `carriers` are the names of the layers with LoRA."""
    layers: dict[str, int] = {}
    widest_product = 0
    for name, module in model.named_modules():
        if (layer := layer_of(name)) is None:
            continue
        layers[layer] = layers.get(layer, 0) + _kept(model, name, module, parameters, name in carriers, masked=masked)
        if isinstance(module, nn.Linear) and ".experts." not in name:
            widest_product = max(widest_product, module.out_features, module.in_features)
    experts = _experts_kept(model)
    widest = max(layers.values(), default=0) + experts
    with_experts = sum(1 for layer in layers if _has_experts(model, layer)) if experts else 0
    return Activations(
        all_layers=sum(layers.values()) + with_experts * experts,
        widest_layer=widest,
        coming_and_going=_BYTES * widest_product + experts,
    )


def layer_of(name: str) -> str | None:
    """`model.layers.7` of `model.layers.7.mlp.up_proj`; None outside the layers."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return None if at is None else ".".join(parts[: at + 1])


def _kept(
    model: PreTrainedModel, name: str, module: nn.Module, parameters: Hyperparameters, carries: bool, *, masked: bool
) -> int:
    leaf = name.rsplit(".", 1)[-1]
    if type(module).__name__.endswith("Norm"):
        return _norm_kept(model, leaf, module)
    if not isinstance(module, nn.Linear):
        return 0
    return _BYTES * _linear_kept(model, leaf, module, masked=masked) + _lora_kept(leaf, module, parameters, carries)


def _norm_kept(model: PreTrainedModel, leaf: str, norm: Any) -> int:
    from lora_trainer.models.fused import has_plain_norm

    width: int = norm.weight.numel()
    text = model.config.get_text_config()
    if leaf == "q_norm":
        width *= text.num_attention_heads
    elif leaf == "k_norm":
        width *= text.num_key_value_heads
    return width * (_BYTES if has_plain_norm(norm) else _FP32)


def _linear_kept(model: PreTrainedModel, leaf: str, linear: nn.Linear, *, masked: bool) -> int:
    """Numbers that are kept of what a linear layer gives or takes, for others than LoRA."""
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


def _lora_kept(leaf: str, linear: nn.Linear, parameters: Hyperparameters, carries: bool) -> int:
    if not carries:
        return 0
    inner = _BYTES * parameters.rank
    if parameters.dropout or parameters.use_dora:
        return inner + (_BYTES + _MASK) * linear.in_features
    # Projections of the same input keep it once; what attention gives is kept by attention, too.
    first = leaf in {"q_proj", "gate_proj", "in_proj_qkvz", "down_proj"}
    return inner + (_BYTES * linear.in_features if first else 0)


def _experts_kept(model: PreTrainedModel) -> int:
    """Of each token, by the experts that it is sent to: their gates and products, and what they give."""
    text = model.config.get_text_config()
    if not any(".experts" in name for name, _ in model.named_modules()):
        return 0
    width = getattr(text, "moe_intermediate_size", None) or text.intermediate_size
    experts: int = getattr(text, "num_experts", None) or text.num_local_experts
    router = (2 * _FP32 + _BYTES) * experts
    return int(text.num_experts_per_tok * _BYTES * (3 * width + text.hidden_size) + router)


def _has_experts(model: PreTrainedModel, layer: str) -> bool:
    return any(part.startswith(f"{layer}.") and ".experts" in part for part, _ in model.named_modules())
