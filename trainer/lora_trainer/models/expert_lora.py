"""LoRA on the routed experts of a mixture, in 4 bits or in full precision.

PEFT adds LoRA to fused experts by a parametrisation of their weights: each forward pass makes `W + scale · B A` for all
experts, and the backward pass a gradient as large as all of them. On 4-bit experts its second step raises an error.
Here PEFT's modules hold the adapter, so that checkpoints and their names are PEFT's, and the products go through the
two small matrices of the experts that a token was sent to. The unpacked weights are used as without LoRA: once in the
forward pass, once where the layer is recomputed.

`gate_proj` and `up_proj` share their A matrix, since they are one fused matrix here. Published is each expert's LoRA
under its own name, as vLLM and PEFT load it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.integrations.moe import _grouped_linear

from lora_trainer.errors import BaseModelUnknownError
from lora_trainer.models.sharding import gathered

_ADAPTER = "default"
_GATE_UP, _DOWN = "gate_up_proj", "down_proj"
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_KERNEL_RANK = 8
"""Grouped products need rows of a multiple of 16 bytes."""
_PUBLISHED = re.compile(
    rf"^(?P<experts>.*\.experts)\.(?P<number>\d+)\.(?P<name>{'|'.join(PROJECTIONS)})\.lora_(?P<matrix>[AB])\.weight$"
)
_SAVED = re.compile(r"^(?P<experts>.*\.experts)(?P<inner>\.base_layer)?\.lora_(?P<matrix>[AB])\.weight$")


def routed_experts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold the fused experts of a layer, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.endswith(".experts") and _holds(module, _GATE_UP) and _holds(module, _DOWN)
    }


def _holds(module: nn.Module, name: str) -> bool:
    # `hasattr` would unpack all experts of the layer, and fail where this process has only a part of them.
    parametrised: Any = getattr(module, "parametrizations", {})
    return name in parametrised or name in dict(module.named_parameters(recurse=False))


class ExpertLoraSize(NamedTuple):
    """How many weights LoRA on routed experts has."""

    trained: int = 0
    published: int = 0
    """More than those trained: gate and up are published with an A each, which are the same."""


def count_expert_lora(model: nn.Module, rank: int) -> ExpertLoraSize:
    """How many weights LoRA on all routed experts has; a model on the meta device will do."""
    trained = published = 0
    for module in routed_experts(model).values():
        experts, both, width = _shape(module, _GATE_UP)
        _, _, inner = _shape(module, _DOWN)
        trained += experts * rank * (both + width + inner + width)
        published += experts * rank * (both + 2 * width + inner + width)
    return ExpertLoraSize(trained, published)


def _shape(module: nn.Module, name: str) -> tuple[int, int, int]:
    """The shape of fused weights: (experts, out, in)."""
    parametrised: Any = getattr(module, "parametrizations", {})
    if name in parametrised:
        return tuple(parametrised[name][0].quant_state.shape)
    return tuple(getattr(module, name).shape)


def attach_expert_lora(model: nn.Module, config: LoraConfig) -> int:
    """Put LoRA on all routed experts of a model that PEFT has prepared. Returns the number of layers that have them."""
    experts = routed_experts(model)
    for name, module in experts.items():
        wrapper: Any = module
        _check_layout(module)
        with gathered(model, name):
            for parameter in (_GATE_UP, _DOWN):
                wrapper = ParamWrapper(wrapper, _ADAPTER, parameter, config, r=config.r, lora_alpha=config.lora_alpha)
        # In fp32, as PEFT keeps the rest of an adapter; it gives these the type of the base.
        for part in ("lora_A", "lora_B"):
            getattr(wrapper, part).float()
            getattr(wrapper.base_layer, part).float()
        wrapper.forward = MethodType(_forward, wrapper)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, wrapper)
    return len(experts)


def _check_layout(module: Any) -> None:
    """Make sure that the experts are of the kind that `_forward` computes.

    Raises:
        BaseModelUnknownError: they are not.
    """
    plain = not (module.is_transposed or module.has_bias or module.has_post_expert_norm)
    if not (plain and module.has_gate and module.is_concatenated):
        raise BaseModelUnknownError(
            "The experts of this base are built otherwise than LoRA on experts knows.", "Set target_experts to false."
        )


def _forward(
    wrapper: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The experts' result for each token, with LoRA.

    Shapes: `hidden_states` is (tokens, width), `top_k_index` and `top_k_weights` are (tokens, experts of a token).
    """
    experts = wrapper.get_base_layer()
    if wrapper.disable_adapters:
        return torch.as_tensor(experts(hidden_states, top_k_index, top_k_weights))
    tokens, chosen = top_k_index.shape
    # All tokens of an expert one after the other, as grouped products take them.
    ids, order = torch.sort(top_k_index.reshape(-1))
    ends = torch.searchsorted(ids, torch.arange(experts.num_experts, device=ids.device), right=True).int()
    both = _linear(hidden_states[order // chosen], wrapper.base_layer, ends)
    inner = experts._apply_gate(both)  # noqa: SLF001 what transformers' own forward calls
    results = _linear(inner, wrapper, ends) * top_k_weights.reshape(-1)[order, None]
    back = torch.empty_like(order)
    back[order] = torch.arange(order.numel(), device=order.device)
    mixed: torch.Tensor = results[back].view(tokens, chosen, -1).sum(dim=1)
    return mixed.to(hidden_states.dtype)


def _linear(x: torch.Tensor, wrapper: Any, ends: torch.Tensor) -> torch.Tensor:
    """`x Wᵀ + scale · (x Aᵀ) Bᵀ`, each row with the matrices of its expert; `ends` says where an expert's rows end."""
    weight = wrapper.get_param()
    a, b = _matrices(wrapper, weight.dtype)
    inner = _grouped_linear(x, a, ends)
    scale: float = wrapper.scaling[_ADAPTER]
    product: torch.Tensor = _grouped_linear(x, weight, ends) + scale * _grouped_linear(inner, b, ends)
    return product


def _matrices(wrapper: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of each expert: (experts, rank, in) and (experts, out, rank); the rank is filled up for the kernels."""
    a, b = split_experts(
        wrapper.lora_A[_ADAPTER].weight.to(dtype), wrapper.lora_B[_ADAPTER].weight.to(dtype), wrapper.num_experts
    )
    if missing := -wrapper.r[_ADAPTER] % _KERNEL_RANK:
        a, b = nn.functional.pad(a, (0, 0, 0, missing)), nn.functional.pad(b, (0, missing))
    return a, b.contiguous()


def split_experts(a: torch.Tensor, b: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrices of each expert, from PEFT's (rank · experts, in) and (out, rank · experts)."""
    return a.view(experts, -1, a.shape[1]), b.view(b.shape[0], -1, experts).permute(2, 0, 1)


def experts_with_lora(model: nn.Module) -> int:
    """How many experts a layer has whose routed experts carry LoRA; 0 where they carry none."""
    return max((module.num_experts for module in model.modules() if isinstance(module, ParamWrapper)), default=0)


def publish_by_expert(weights: Path, config: Path, experts: int) -> None:
    """Rewrite a saved adapter so that each expert has its own LoRA, under the names that vLLM and PEFT load.

    `weights` and `config` are the adapter's two files, `experts` the number of experts of a layer. Published are
    `….experts.<number>.gate_proj.lora_A.weight` and so on; gate and up have the same A.
    """
    saved = load_file(weights)
    published: dict[str, torch.Tensor] = {}
    for name, tensor in saved.items():
        found = _SAVED.match(name)
        if found is None:
            published[name] = tensor
        else:
            published |= _by_expert(found, tensor, experts)
    save_file(published, weights, metadata={"format": "pt"})
    settings = json.loads(config.read_text())
    settings["target_modules"] = sorted({*settings["target_modules"], *PROJECTIONS})
    config.write_text(json.dumps(settings, indent=2, sort_keys=True))


def _by_expert(found: re.Match[str], tensor: torch.Tensor, experts: int) -> dict[str, torch.Tensor]:
    prefix, matrix = found["experts"], found["matrix"]
    each = (
        tensor.view(experts, -1, tensor.shape[1])
        if matrix == "A"
        else tensor.view(tensor.shape[0], -1, experts).permute(2, 0, 1)
    )
    names = PROJECTIONS[:2] if found["inner"] else PROJECTIONS[2:]
    # B of the fused matrix has the rows of gate, then those of up; both have the same A.
    parts = each.chunk(2, dim=1) if found["inner"] and matrix == "B" else (each,) * len(names)
    return {
        f"{prefix}.{number}.{name}.lora_{matrix}.weight": part[number].clone()
        for name, part in zip(names, parts, strict=True)
        for number in range(experts)
    }


def as_trained(published: dict[str, torch.Tensor], experts: int) -> dict[str, torch.Tensor]:
    """The weights of a published adapter under the names and in the shapes in which they are trained.

    They are returned as they are where they can't be brought into that form: an expert is missing, or gate and up have
    not the same A.
    """
    parts: dict[tuple[str, str, str], dict[int, torch.Tensor]] = {}
    trained: dict[str, torch.Tensor] = {}
    for name, tensor in published.items():
        found = _PUBLISHED.match(name)
        if found is None:
            trained[name] = tensor
        else:
            parts.setdefault((found["experts"], found["name"], found["matrix"]), {})[int(found["number"])] = tensor
    try:
        stacked = {key: torch.stack([each[number] for number in range(experts)]) for key, each in parts.items()}
        for prefix in {prefix for prefix, _, _ in parts}:
            gate, up, down = (tuple(stacked[prefix, name, matrix] for matrix in "AB") for name in PROJECTIONS)
            if not torch.equal(gate[0], up[0]):
                return published
            for outer, (a, b) in ((f"{prefix}.base_layer", (gate[0], torch.cat([gate[1], up[1]], 1))), (prefix, down)):
                trained[f"{outer}.lora_A.weight"] = a.reshape(-1, a.shape[2])
                trained[f"{outer}.lora_B.weight"] = b.permute(1, 2, 0).reshape(b.shape[1], -1)
    except (KeyError, IndexError, RuntimeError):  # one is missing, or has another shape
        return published
    return trained
