"""Weights in 4 bits as they lie in a file, and their way back into a model.

A file holds each quantised weight as bitsandbytes itself would save it: `<name>` with two values a byte, and beside it
`<name>.absmax` and the other constants that unpack it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState

_CONSTANTS = (
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
    "quant_state.bitsandbytes__nf4",
)
"""The last parts of the names of what belongs to a packed weight."""


class PackedWeight:
    """A weight in 4 bits on its way into a model."""

    def __init__(self, data: torch.Tensor, constants: dict[str, torch.Tensor]) -> None:
        self._data = data
        self._constants = constants

    def to(self, device: Any = None, dtype: Any = None) -> PackedWeight:
        """The same on another device. The loader asks for the model's `dtype`, which packed values don't have."""
        del dtype
        return PackedWeight(self._data.to(device), self._constants)

    def for_linear(self, module: Any) -> torch.nn.Parameter:
        """The parameter of a linear layer, with its constants.

        Raises:
            ValueError: it doesn't fit the layer.
        """
        parameter = bnb.nn.Params4bit.from_prequantized(
            self._data, self._constants, device=self._data.device, module=module
        )
        _check(self._data, parameter.quant_state, (module.out_features, module.in_features))
        return parameter

    def for_expert(self, shape: torch.Size) -> tuple[torch.nn.Parameter, QuantState]:
        """The parameter of fused experts of this shape, and its constants.

        Raises:
            ValueError: it doesn't fit.
        """
        state = QuantState.from_dict(self._constants, self._data.device)
        _check(self._data, state, tuple(shape))
        return torch.nn.Parameter(self._data, requires_grad=False), state


def _check(data: torch.Tensor, state: QuantState, shape: tuple[int, ...]) -> None:
    numel = torch.Size(shape).numel()
    blocks = -(-numel // state.blocksize)
    if tuple(state.shape) != shape or data.numel() * 2 != numel or state.absmax.numel() != blocks or not state.nested:
        raise ValueError("a packed weight does not fit the model")


class StoredWeight(NamedTuple):
    """The names in a file of what makes up one parameter of a model."""

    name: str
    constants: dict[str, str]
    """The full name in the file, by its last part; empty for a weight that is not packed."""

    def read(self, tensor: Callable[[str], torch.Tensor]) -> torch.Tensor | PackedWeight:
        """The weight; `tensor` reads one tensor of the file."""
        data = tensor(self.name)
        if not self.constants:
            return data
        return PackedWeight(data, {last: tensor(full) for last, full in self.constants.items()})


def group_names(names: Collection[str]) -> list[StoredWeight]:
    """The parameters that a file with these tensors holds."""
    constants = {full for name in names for full in _constants_of(name).values()} & set(names)
    return [
        StoredWeight(name, {last: full for last, full in _constants_of(name).items() if full in constants})
        for name in names
        if name not in constants
    ]


def _constants_of(name: str) -> dict[str, str]:
    return {last: f"{name}.{last}" for last in _CONSTANTS}


def stored_tensors(model: Any) -> dict[str, torch.Tensor]:
    """All that a file must hold to load the model again, packed weights as they are. The tensors share its memory."""
    tied: Collection[str] = getattr(model, "all_tied_weights_keys", {})
    return {name: tensor.as_subclass(torch.Tensor) for name, tensor in model.state_dict().items() if name not in tied}
