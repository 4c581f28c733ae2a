"""Counts which modules of a base took a published adapter, tensor by tensor.

PEFT loads an adapter whose tensors no module takes with a warning, and a module that finds no tensor keeps its first
values, which change nothing. So every tensor of the file must be in a module, with its very values, and every module
that carries LoRA must have its tensors from the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from lora_contract.words import counted
from lora_trainer.errors import NotAppliedError
from lora_trainer.models.expert_lora import PROJECTIONS, split_experts

_ADAPTER = "default"
_PART = re.compile(r"\.lora_(?:A|B|magnitude_vector|embedding_A|embedding_B)(?:\.weight)?$")
_MATRIX = re.compile(rf"(?P<module>.*)\.(?P<part>lora_\w+)\.{_ADAPTER}(?:\.weight)?")
_REMEDY = "The adapter would change nothing, or something else than was trained; please report it to support."


@dataclass(frozen=True)
class Coverage:
    """How many modules took an adapter, and how many tensors its file holds."""

    modules: int
    tensors: int


@dataclass
class _Findings:
    """What is wrong, with the name of the module; each list is in the order of the file or of the model."""

    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def check_coverage(published: dict[str, torch.Tensor], model: nn.Module) -> Coverage:
    """Make sure that the modules of `model` hold exactly the tensors `published`, those of the adapter's file.

    Raises:
        NotAppliedError: names how many modules took the adapter, what is wrong, and the first module of it.
    """
    held = dict(_held_tensors(model))
    findings = _Findings(
        unknown=[_module_of(name) for name in published if _key(name) not in held],
        missing=[_module_of(name) for name in held.keys() - {_key(name) for name in published}],
    )
    for name, tensor in published.items():
        loaded = held.get(_key(name))
        if loaded is not None and loaded.shape != tensor.shape:
            findings.misshapen.append(_module_of(name))
        elif loaded is not None and not torch.equal(loaded.to("cpu", tensor.dtype), tensor):
            findings.changed.append(_module_of(name))
    modules = {_module_of(name) for name in held}
    wrong = {*findings.missing, *findings.misshapen, *findings.changed}
    if problem := _problem(findings):
        raise NotAppliedError(
            f"{len(modules - wrong)} of {counted(len(modules), 'module')} took the published adapter: {problem}.",
            _REMEDY,
        )
    if not modules:
        raise NotAppliedError("No module of the base took the published adapter, which holds no tensor.", _REMEDY)
    return Coverage(len(modules), len(published))


def _problem(findings: _Findings) -> str | None:
    """What is wrong, in words; None where nothing is."""
    told = (
        (findings.unknown, "of its file's tensors have a name that no module knows"),
        (findings.missing, "that modules need are not in its file"),
        (findings.misshapen, "of its file's tensors have another shape than the base's module"),
        (findings.changed, "of its file's tensors arrived with other values"),
    )
    parts = [f"{len(found)} {what} (first {min(found)[:200]})" for found, what in told if found]
    return "; ".join(parts) or None


def _key(name: str) -> str:
    """The name of a tensor of the file without what PEFT writes in two ways."""
    return name.removesuffix(".weight")


def _module_of(name: str) -> str:
    """The module that a tensor belongs to, as the base names it."""
    return _PART.sub("", name).removeprefix("base_model.model.")


def _held_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of LoRA in the model's modules, under the names under which they are published."""
    wrappers = [f"{name}." for name, module in model.named_modules() if isinstance(module, ParamWrapper)]
    for name, parameter in model.named_parameters():
        found = _MATRIX.fullmatch(name)
        if found is not None and not name.startswith(tuple(wrappers)):
            yield f"{found['module']}.{found['part']}", parameter.detach()
    for name, module in model.named_modules():
        if isinstance(module, ParamWrapper) and not name.endswith(".base_layer"):
            yield from _of_experts(name, module)


def _of_experts(name: str, outer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The matrices of each routed expert; `outer` wraps the down projection, and in it the fused gate and up."""
    experts: int = outer.num_experts
    down, fused = _matrices(outer, experts), _matrices(outer.base_layer, experts)
    rank, inner = down[0].shape[1], fused[1].shape[1] // 2
    # PEFT fuses gate and up with the ranks of both; in training they share their A.
    second = slice(rank, None) if fused[0].shape[1] == 2 * rank else slice(None, rank)
    first = slice(None, rank)
    parts = (
        (fused[0][:, first], fused[1][:, :inner, first]),
        (fused[0][:, second], fused[1][:, inner:, second]),
        down,
    )
    for projection, (a, b) in zip(PROJECTIONS, parts, strict=True):
        for number in range(experts):
            yield f"{name}.{number}.{projection}.lora_A", a[number]
            yield f"{name}.{number}.{projection}.lora_B", b[number]


def _matrices(wrapper: Any, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = wrapper.lora_A[_ADAPTER].weight.detach(), wrapper.lora_B[_ADAPTER].weight.detach()
    return split_experts(a, b, experts)
