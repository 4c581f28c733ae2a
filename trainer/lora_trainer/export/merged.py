"""Exports an adapter as a whole model: base and adapter merged in bf16, one weight file of the base after the other.

Memory is bounded by the blocks in which a tensor is read and added (`lora_trainer.export.merging`), whatever the size
of the base. The index of the weight files is written last: until then no loader takes the folder for a model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora_contract.exports import ExportRecord, is_export_source
from lora_contract.ollama import MODELFILE_NAME
from lora_contract.protocol import ADAPTER_FILES
from lora_trainer.export.adapter import Adapter
from lora_trainer.export.card import merged_card, merged_modelfile
from lora_trainer.export.folder import ExportFolder, open_folder
from lora_trainer.export.layout import Shard, plan_shards, read_base, read_config
from lora_trainer.export.places import find_places
from lora_trainer.models.bases import INDEX_NAME, Base, licence_of

log = logging.getLogger(__name__)

FORMAT = 1
"""Counts changes of what an export writes for the same inputs: then a begun one does not go on."""
_NOT_TOKENIZER = frozenset({*ADAPTER_FILES, "generation_config.json"})
_LICENCES = re.compile(r"LICENSE[\w.-]*|NOTICE[\w.-]*")
_MOST_BYTES = 200_000_000
"""The largest tokenizer that is copied; published ones have up to some 40 MB."""

Say = Callable[[str], None]


def export_merged(adapter: Adapter, base: Base, target: Path, say: Say = log.info) -> ExportRecord:
    """Write `base` with `adapter` merged into it to the folder `target`; `say` is told each step.

    An export of the same inputs that was killed goes on with the first file that is missing.

    Raises:
        ExportRefusedError: the adapter does not fit the base, the base is quantised, or `target` is in use.
        BaseModelMismatchError: the base's files are damaged.
        DiskFullError: there is no room for the result.
    """
    config = read_config(base)
    files = read_base(base)
    spans = {name: span for each in files.values() for name, span in each.items()}
    tied = bool(config.get("tie_word_embeddings"))
    shards = plan_shards(files, find_places(spans, adapter.modules, tied_embeddings=tied))
    small = _small_files(adapter, base, config)
    wanted = ExportRecord(
        form="merged",
        base_model=base.name,
        base_revision=base.revision,
        adapter_sha256=adapter.sha256,
        inputs_sha256=_inputs(adapter, base, files, small),
        modules=len(adapter.modules),
    )
    with open_folder(target, wanted) as folder:
        if folder.record.complete:
            say(f"{target} holds this export already")
            return folder.record
        _write(folder, shards, small, say)
        return folder.finish()


def _write(folder: ExportFolder, shards: list[Shard], small: Mapping[str, bytes], say: Say) -> None:
    sizes = {shard.name: shard.size for shard in shards} | {name: len(content) for name, content in small.items()}
    folder.check_room(sizes)
    for name, content in small.items():
        folder.write_small(name, content)
    for number, shard in enumerate(shards, start=1):
        place = f"file {number} of {len(shards)}"
        if folder.has(shard.name):
            say(f"{place}: {shard.name} is there already")
            continue
        folder.write(shard.name, shard.write)
        say(f"{place}: {shard.name}, {shard.size / 1e9:.2f} GB")
    if [shard.name for shard in shards] != ["model.safetensors"]:
        folder.write_small(INDEX_NAME, _index(shards))


def _index(shards: list[Shard]) -> bytes:
    """The index, which names the file of each tensor (transformers reads it from `model.safetensors.index.json`)."""
    total = sum(tensor.size for shard in shards for tensor in shard.tensors.values())
    names = {name: shard.name for shard in shards for name in shard.tensors}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": names}, indent=2, sort_keys=True).encode()


def _small_files(adapter: Adapter, base: Base, config: dict[str, Any]) -> dict[str, bytes]:
    """All files but the weights: tokenizer and generation settings of the adapter, the base's config and licence."""
    ours, theirs = (_read_matching(folder, is_export_source) for folder in (adapter.folder, base.folder))
    found = _read_matching(base.folder, lambda name: _LICENCES.fullmatch(name) is not None)
    # Not a mixture of both: an older file of the base might be read instead of the adapter's.
    tokenizers = ({name: each[name] for name in each if name not in _NOT_TOKENIZER} for each in (ours, theirs))
    found |= next(filter(None, tokenizers), {})
    found |= {name: each[name] for each in (theirs, ours) for name in each if name == "generation_config.json"}
    found["config.json"] = json.dumps(_in_bf16(config), indent=2).encode()
    found[MODELFILE_NAME] = merged_modelfile(adapter).encode()
    found["README.md"] = merged_card(adapter, base, licence_of(base)).encode()
    return found


def _read_matching(folder: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    files = sorted(file for file in folder.iterdir() if wanted(file.name) and file.suffix != ".safetensors")
    return {file.name: file.read_bytes() for file in files if file.is_file() and file.stat().st_size <= _MOST_BYTES}


def _in_bf16(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration for weights in bf16; transformers 5 names the type `dtype`, earlier releases `torch_dtype`."""
    changed = {
        key: _in_bf16(value) if key.endswith("_config") and isinstance(value, dict) else value
        for key, value in config.items()
        if key != "_name_or_path"
    }
    typed = {key: "bfloat16" for key in ("dtype", "torch_dtype") if key in changed}
    return changed | typed


def _inputs(adapter: Adapter, base: Base, files: Mapping[str, Any], small: Mapping[str, bytes]) -> str:
    """The sha256 of all that the result depends on."""
    stats = [(name, (base.folder / name).stat()) for name in files]
    facts = {
        "format": FORMAT,
        "adapter": [adapter.sha256, adapter.config_sha256],
        "base": [base.name, base.revision],
        # A commit names the content of its files; a plain folder's may be replaced by others of the same size.
        "files": [[name, at.st_size, None if base.revision else at.st_mtime_ns] for name, at in stats],
        "small": {name: hashlib.sha256(content).hexdigest() for name, content in small.items()},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
