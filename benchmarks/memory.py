"""Counts the bytes of live tensors at PyTorch's dispatcher. This is exact, unlike the resident size of the process."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are created while it is active; `peak` is the most that existed at once.

    Memory-mapped checkpoints are not created by an operation, so they are not counted, as they take no GPU memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: Any = WeakIdKeyDictionary()
        self.live = 0
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the tensors that it creates."""
        result = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._note, result)
        return result

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.device.type != "meta" and storage not in self._known:
            size = storage.nbytes()
            self._known[storage] = weakref.finalize(storage, self._forget, size)
            self.live += size
            self.peak = max(self.peak, self.live)
        return tensor

    def _forget(self, size: int) -> None:
        self.live -= size
