"""The base's weight files, and what an export writes in their place.

Each file of the base gives one file of the same name: so an export works on one file at a time, and what is finished
after a kill is whole files.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_trainer.errors import BaseModelMismatchError, ExportRefusedError
from lora_trainer.export.folder import HashedFile
from lora_trainer.export.merging import tensor_pieces
from lora_trainer.export.places import Part
from lora_trainer.models.bases import INDEX_NAME, Base, weight_files
from lora_trainer.models.weight_files import Span, header_of, read_spans, view_bytes

_FILE_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,190}\.safetensors")
_MOST_CONFIG_BYTES = 5_000_000
_WIDE = (torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Tensor:
    """One tensor of the result, and what makes it."""

    span: Span
    parts: tuple[Part, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes in the result."""
        return math.prod(self.span.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """One weight file of the result."""

    name: str
    tensors: dict[str, Tensor]

    @property
    def header(self) -> bytes:
        """The beginning of the file."""
        return header_of({name: (tensor.dtype, tensor.span.shape) for name, tensor in self.tensors.items()})

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(tensor.size for tensor in self.tensors.values())

    def write(self, target: HashedFile) -> None:
        """Write the file: the base's tensors with what the adapter adds to them.

        Raises:
            ExportRefusedError: the adapter holds values that are no finite numbers, or its file ends too early.
            BaseModelMismatchError: the base's file is shorter than it was.
        """
        target.write(self.header)
        source = next(iter(self.tensors.values())).span.file
        with source.open("rb") as file:
            for tensor in self.tensors.values():
                try:
                    for piece in tensor_pieces(file, tensor.span, tensor.parts, tensor.dtype):
                        target.write(view_bytes(piece.reshape(-1).view(torch.uint8)))
                except ValueError:
                    raise damaged(source) from None


def read_config(base: Base) -> dict[str, Any]:
    """The base's config.json.

    Raises:
        ExportRefusedError: the base is quantised.
        BaseModelMismatchError: it can't be read.
    """
    path = base.folder / "config.json"
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(_MOST_CONFIG_BYTES))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise damaged(path)
    if config.get("quantization_config"):
        raise ExportRefusedError(
            f"The base model {base.name} is quantised: merged into so few bits, what the adapter learned would be "
            "rounded away.",
            "Name the base that is not quantised (--base), from which this one was made.",
        )
    return config


def read_base(base: Base) -> dict[str, dict[str, Span]]:
    """The tensors of each weight file of the base, by file and by name.

    Raises:
        BaseModelMismatchError: a file is missing or damaged, or the base's index names one elsewhere.
    """
    try:
        files = weight_files(base.folder)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged(base.folder / INDEX_NAME) from None
    found = {}
    for file in files:
        if file.parent != base.folder or not _FILE_NAME.fullmatch(file.name):
            raise BaseModelMismatchError(f"The index of {base.name} names a file outside of its folder.")
        try:
            found[file.name] = read_spans(file)
        except (ValueError, FileNotFoundError):
            raise damaged(file) from None
    tensors = Counter(name for spans in found.values() for name in spans)
    if double := [name for name, times in tensors.items() if times > 1]:
        raise BaseModelMismatchError(f"Two files of {base.name} hold the tensor {double[0]:.200}.")
    return found


def plan_shards(files: Mapping[str, Mapping[str, Span]], places: Mapping[str, Sequence[Part]]) -> list[Shard]:
    """What is to be written. Tensors with LoRA become bf16; so do the others where the base is held in a wider type.

    Raises:
        ExportRefusedError: the base's weights are of no type of 16 bits or more.
    """
    wide = _wide_type([span for spans in files.values() for span in spans.values()])
    return [
        Shard(
            file,
            {
                name: Tensor(
                    span,
                    tuple(places.get(name, ())),
                    torch.bfloat16 if name in places or span.dtype is wide else span.dtype,
                )
                # In the order of the base's file, which is read from begin to end.
                for name, span in sorted(spans.items(), key=lambda item: item[1].offset)
            },
        )
        for file, spans in files.items()
        if spans
    ]


def _wide_type(spans: list[Span]) -> torch.dtype | None:
    """The type of most bytes of the base, if bf16 takes its place. A few tensors of another type keep theirs."""
    sizes: Counter[torch.dtype] = Counter()
    for span in spans:
        sizes[span.dtype] += span.size
    main = max(sizes, key=lambda dtype: sizes[dtype], default=None)
    if main in _WIDE:
        return main
    if main is not torch.bfloat16:
        raise ExportRefusedError(
            f"Most of the base's weights are of the type {str(main).removeprefix('torch.')}: an export merges into "
            "weights of 16 bits and more.",
            "Name the base that is not quantised (--base).",
        )
    return None


def damaged(path: Path) -> BaseModelMismatchError:
    """The error of a base's file that can't be read."""
    return BaseModelMismatchError(
        f"The base's file {path.name} is missing or damaged.", "Remove its folder, so that it is downloaded again."
    )
