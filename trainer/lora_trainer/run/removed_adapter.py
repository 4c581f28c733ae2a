"""What is left in place of a served adapter that was removed: LoRA weights of zeros, which change nothing.

A server that has answered with an adapter, and has pushed it out of its memory since, reads its folder again in the
middle of its work; where it finds nothing, its engine ends, and with it everybody's requests (vLLM 0.33.0,
`lora/worker_manager.py`). So a small adapter of zeros stays there for a while, under a base model's name that no
server has: a server that does not know the name finds no such model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_contract.protocol import ADAPTER_FILES

_CONFIG, _WEIGHTS = ADAPTER_FILES
_MOST_HEADER_BYTES = 100_000_000
"""What the library safetensors allows."""
_MOST_BYTES = 64 * 1024**2
_ENDS = (".lora_A.weight", ".lora_B.weight")


def write_zeros(adapter: Path, folder: Path) -> None:
    """Write into `folder` an adapter of zeros of the same shape as `adapter`, on its smallest module.

    Raises:
        ValueError: the adapter's files are not readable as such.
        OSError: they can't be read, or the new ones not written.
    """
    config = json.loads((adapter / _CONFIG).read_bytes())
    tensors = _smallest_module(_read_header(adapter / _WEIGHTS))
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {**tensor, "data_offsets": [end, end + _size(tensor)]}
        end += _size(tensor)
    if not isinstance(config, dict) or not 0 < end <= _MOST_BYTES:
        raise ValueError("these are no files of an adapter")
    text = json.dumps(header).encode()
    with (folder / _WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)  # which fills the file with zeros
    (folder / _CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": ""}, indent=2), encoding="utf-8")


def _read_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_HEADER_BYTES:
            raise ValueError("the header of the weights is too long")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("the weights have no header")  # noqa: TRY004 the file's content is wrong, not an argument
    return header


def _smallest_module(header: dict[str, Any]) -> dict[str, Any]:
    """Both tensors of the module that takes the fewest bytes. An expert's does not do: those are taken all together."""
    modules: dict[str, dict[str, Any]] = {}
    for name, tensor in header.items():
        module = next((name.removesuffix(end) for end in _ENDS if name.endswith(end)), None)
        if module is not None and ".experts." not in module:
            modules.setdefault(module, {})[name] = tensor
    whole = [tensors for tensors in modules.values() if len(tensors) == len(_ENDS)]
    if not whole:
        raise ValueError("the weights hold no module with LoRA")
    try:
        return min(whole, key=lambda tensors: sum(map(_size, tensors.values())))
    except (TypeError, KeyError):
        raise ValueError("the header of the weights can't be read") from None


def _size(tensor: dict[str, Any]) -> int:
    begin, end = tensor["data_offsets"]
    return int(end) - int(begin)
