"""Exports an adapter as GGUF, the format in which llama.cpp and Ollama load one beside a base in GGUF.

llama.cpp publishes its package for reading and writing the format (`gguf`), but no converter. For these architectures
a conversion is a renaming by that package's own table, with one exception: llama.cpp keeps the rows of Llama's q_proj
and k_proj in another order (`LlamaModel.permute` in its conversion/llama.py), so the adapter's rows must follow. Of
Qwen3-Next it splits and reorders whole matrices; that is left to its converter.

llama.cpp adds `alpha / rank · B A`, the same alpha for all modules: with rank-stabilised LoRA, or other alphas for some
modules, the rest of a module's factor goes into its B.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_contract.exports import ExportRecord
from lora_contract.ollama import MODELFILE_NAME
from lora_trainer.errors import ExportRefusedError
from lora_trainer.export.adapter import Adapter, LoraModule
from lora_trainer.export.card import gguf_modelfile
from lora_trainer.export.folder import open_folder
from lora_trainer.export.layout import read_config
from lora_trainer.export.merging import read_matrices
from lora_trainer.models.bases import Base

log = logging.getLogger(__name__)

FORMAT = 1
GGUF_NAME = "adapter.gguf"
_ARCHITECTURES = {
    "llama": "LLAMA",
    "mistral": "LLAMA",
    "mixtral": "LLAMA",
    "qwen2": "QWEN2",
    "qwen3": "QWEN3",
    "qwen3_moe": "QWEN3MOE",
}
"""The names of `gguf.MODEL_ARCH`, by transformers' `model_type`."""
_PERMUTED = "LLAMA"
"""The architecture of which llama.cpp reorders the rows of q_proj and k_proj."""
_EXPERT = re.compile(r"(?P<before>.+\.experts)\.(?P<number>\d{1,6})\.(?P<projection>\w+)")
_MOST_LAYERS = 10_000

Say = Callable[[str], None]


def export_gguf(adapter: Adapter, base: Base, target: Path, say: Say = log.info) -> ExportRecord:
    """Write `adapter` as GGUF, in float32, into `target`. No weights of `base` are read.

    Raises:
        ExportRefusedError: it can't be written for this architecture, or is no plain LoRA; `gguf` is not installed; or
            `target` is in use.
        DiskFullError: there is no room for the result.
    """
    config = read_config(base)
    tensors = _tensors(adapter, config)
    wanted = ExportRecord(
        form="gguf",
        base_model=base.name,
        base_revision=base.revision,
        adapter_sha256=adapter.sha256,
        inputs_sha256=hashlib.sha256(
            json.dumps([FORMAT, adapter.sha256, adapter.config_sha256, base.name, base.revision, config]).encode()
        ).hexdigest(),
        modules=len(adapter.modules),
    )
    with open_folder(target, wanted) as folder:
        if folder.record.complete:
            say(f"{target} holds this export already")
            return folder.record
        folder.check_room({GGUF_NAME: sum(4 * math.prod(tensor.shape) for tensor in tensors)})
        if not folder.has(GGUF_NAME):
            folder.write_by_path(GGUF_NAME, lambda path: _write(path, adapter, config, tensors))
            say(f"{GGUF_NAME}: {folder.record.total_bytes / 1e6:,.1f} MB")
        folder.write_small(MODELFILE_NAME, gguf_modelfile(adapter, GGUF_NAME).encode())
        return folder.finish()


@dataclass(frozen=True)
class _Tensor:
    """One matrix of the result: A or B of one module, or of all experts of a layer, one after the other."""

    name: str
    shape: tuple[int, ...]
    modules: tuple[LoraModule, ...]
    is_b: bool
    heads: int | None = None
    """Into how many heads the rows are parted whose order changes; None where it doesn't."""

    def values(self, alpha: float) -> torch.Tensor:
        """The matrix in float32, for a model that adds `alpha / rank · B A`."""
        each = []
        for module in self.modules:
            a, b, _ = read_matrices(module)
            each.append(b * (module.scale * a.shape[0] / alpha) if self.is_b else a)
        stacked = torch.stack(each).reshape(self.shape)
        return stacked if self.heads is None else permute(stacked, self.heads)


def permute(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of q_proj or k_proj in llama.cpp's order: of each head, those rotated together are neighbours."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).transpose(1, 2).reshape(rows.shape)


def _architecture(adapter: Adapter, config: dict[str, Any]) -> str:
    """The name of llama.cpp's architecture.

    Raises:
        ExportRefusedError: the adapter can't be written for it here.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ExportRefusedError("The package gguf is not installed here.", "Install it: pip install gguf")
    if adapter.uses_dora:
        raise _refused("llama.cpp knows no DoRA")
    kind = str(config.get("model_type"))[:60]
    if kind not in _ARCHITECTURES:
        raise _refused(f"the architecture {kind} is not converted here")
    return _ARCHITECTURES[kind]


def _refused(why: str) -> ExportRefusedError:
    return ExportRefusedError(
        f"The adapter can't be written as GGUF: {why}.",
        "Export it merged, and in a checkout of llama.cpp run: python convert_hf_to_gguf.py DIR --outfile model.gguf",
    )


def _tensors(adapter: Adapter, config: dict[str, Any]) -> list[_Tensor]:
    """What is to be written.

    Raises:
        ExportRefusedError: something of the adapter has no place in llama.cpp's models of this architecture.
    """
    architecture = _architecture(adapter, config)
    import gguf

    layers = _count(config, "num_hidden_layers")
    # On the hub it is called num_experts; transformers 5 saves it under the other name.
    experts = config.get("num_experts", config.get("num_local_experts"))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture], layers)
    found: list[_Tensor] = []
    for name, modules in _grouped(adapter).items():
        place = names.get_name(f"{name}.weight", try_suffixes=(".weight",))
        (rows, columns), rank = modules[0].shape, modules[0].a.shape[0]
        alike = all(module.shape == (rows, columns) and module.a.shape[0] == rank for module in modules)
        stack = (len(modules),) if _EXPERT.fullmatch(modules[0].name) else ()
        if place is None or not alike or (stack and stack[0] != experts):
            raise _refused(f"{name:.200} has no place in llama.cpp's models of this architecture")
        heads = _heads(name, config, rows) if architecture == _PERMUTED else None
        found.append(_Tensor(f"{place}.lora_a", (*stack, rank, columns), modules, is_b=False))
        found.append(_Tensor(f"{place}.lora_b", (*stack, rows, rank), modules, is_b=True, heads=heads))
    return found


def _grouped(adapter: Adapter) -> dict[str, tuple[LoraModule, ...]]:
    """The modules by name; those of a layer's experts under one name without a number, in the order of the experts."""
    groups: dict[str, list[tuple[int, LoraModule]]] = {}
    for module in adapter.modules:
        expert = _EXPERT.fullmatch(module.name)
        name = f"{expert['before']}.{expert['projection']}" if expert else module.name
        groups.setdefault(name, []).append((int(expert["number"]) if expert else 0, module))
    return {name: tuple(module for _, module in sorted(each, key=lambda one: one[0])) for name, each in groups.items()}


def _heads(name: str, config: dict[str, Any], rows: int) -> int | None:
    key = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.rpartition(".")[2])
    if key is None:
        return None
    heads = _count(config, key if key in config else "num_attention_heads")
    if rows % (2 * heads):
        raise _refused(f"the rows of {name:.200} are no pairs of {heads} heads")
    return heads


def _count(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST_LAYERS:
        raise _refused(f"the base's config.json has no usable {key}")
    return value


def _write(path: Path, adapter: Adapter, config: dict[str, Any], tensors: list[_Tensor]) -> None:
    """Write the file, one matrix after the other (github.com/ggml-org/ggml, docs/gguf.md)."""
    import gguf
    import numpy as np

    module = adapter.modules[0]
    alpha = module.scale * module.a.shape[0]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[_architecture(adapter, config)]])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_name(f"LoRA adapter of {adapter.base_name}")
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), 4 * math.prod(tensor.shape))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor.values(alpha).numpy())
    finally:
        writer.close()
