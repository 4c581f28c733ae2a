"""Which rows of which tensor of the base an adapter's module changes.

Files of a mixture hold its experts one by one, or packed in one tensor of a layer; an adapter is published by expert.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch

from lora_trainer.errors import ExportRefusedError
from lora_trainer.export.adapter import LoraModule
from lora_trainer.models.weight_files import Span

_EXPERT = re.compile(r"(?P<experts>.+\.experts)\.(?P<number>\d{1,6})\.(?P<projection>gate_proj|up_proj|down_proj)")
_EMBEDDINGS = ("lm_head", "embed_tokens")
_ADDABLE = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_MOST_NAMED = 3


class Part(NamedTuple):
    """Rows of a tensor, flattened to two dimensions, that one module changes: from `begin` to before `end`."""

    begin: int
    end: int
    module: LoraModule


def find_places(
    base: Mapping[str, Span], modules: tuple[LoraModule, ...], *, tied_embeddings: bool
) -> dict[str, tuple[Part, ...]]:
    """The parts of each tensor of the base that the adapter changes, in the order of their rows.

    Raises:
        ExportRefusedError: a module is not in the base, or has another shape there.
    """
    places: dict[str, list[Part]] = {}
    missing = []
    for module in modules:
        if tied_embeddings and module.name.rpartition(".")[2] in _EMBEDDINGS:
            raise ExportRefusedError(
                f"The adapter changes {module.name}, which this base shares between its first and its last layer.",
                "Serve the adapter unmerged: merged it would change both.",
            )
        found = _linear(base, module) or _packed(base, module)
        if found is None:
            missing.append(module.name)
        else:
            places.setdefault(found[0], []).append(found[1])
    if missing:
        named = ", ".join(name[:200] for name in missing[:_MOST_NAMED])
        raise ExportRefusedError(
            f"{len(missing)} of the adapter's {len(modules)} modules are not in the base, or have another shape there: "
            f"{named}{', …' if len(missing) > _MOST_NAMED else ''}.",
            "Name the base that the adapter was trained on, in its revision.",
        )
    return {name: _in_order(name, parts, base[name]) for name, parts in places.items()}


def _linear(base: Mapping[str, Span], module: LoraModule) -> tuple[str, Part] | None:
    # Some files lack the name of the model's body, which the loader then puts in front.
    for name in (f"{module.name}.weight", f"{module.name.removeprefix('model.')}.weight"):
        if name in base and base[name].shape == module.shape:
            return name, Part(0, module.shape[0], module)
    return None


def _packed(base: Mapping[str, Span], module: LoraModule) -> tuple[str, Part] | None:
    """The rows of one expert's projection in a packed tensor: (experts, out, in), gate above up."""
    found = _EXPERT.fullmatch(module.name)
    if found is None:
        return None
    down = found["projection"] == "down_proj"
    name = f"{found['experts']}.{'down_proj' if down else 'gate_up_proj'}"
    number, (rows, width) = int(found["number"]), module.shape
    height = rows if down else 2 * rows
    if name not in base or base[name].shape[1:] != (height, width) or number >= base[name].shape[0]:
        return None
    begin = number * height + (rows if found["projection"] == "up_proj" else 0)
    return name, Part(begin, begin + rows, module)


def _in_order(name: str, parts: list[Part], span: Span) -> tuple[Part, ...]:
    if span.dtype not in _ADDABLE:
        raise ExportRefusedError(
            f"The base's {name} is quantised ({str(span.dtype).removeprefix('torch.')}): what the adapter adds would "
            "be rounded away.",
            "Name the base that is not quantised.",
        )
    ordered = sorted(parts, key=lambda part: part.begin)
    ends = [0, *(part.end for part in ordered)]
    if any(part.begin < end for part, end in zip(ordered, ends, strict=False)):
        raise ExportRefusedError(f"Two of the adapter's modules change the same rows of {name}.")
    return tuple(ordered)


def rows_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """A shape as (rows, columns): the last dimension makes the columns."""
    columns = shape[-1] if shape else 1
    return math.prod(shape[:-1]), columns
