"""Reads where the tensors of a safetensors file lie, and writes such a file tensor by tensor.

The library itself writes only tensors that are all in main memory at once, and reads through a memory map, one page
after the other. The format is a JSON header and the tensors' bytes (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

PIECE_BYTES = 16 << 20
"""How much of a tensor is read, written and summed at a time."""
_MOST_HEADER_BYTES = 100_000_000
"""As the library allows."""
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Span(NamedTuple):
    """Where one tensor lies: `size` bytes from `offset` on."""

    file: Path
    offset: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_spans(path: Path) -> dict[str, Span]:
    """The tensors of a safetensors file, by name.

    Raises:
        ValueError: it is no whole safetensors file, or of a kind that is not known here.
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        text = file.read(length)
        end = os.fstat(file.fileno()).st_size
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        spans = {name: _span(path, 8 + length, entry) for name, entry in header.items()}
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("the header is not that of a safetensors file") from error
    if 8 + length + sum(span.size for span in spans.values()) != end:
        raise ValueError("the file is not as long as its header says")
    return spans


def _span(path: Path, begin: int, entry: Mapping[str, object]) -> Span:
    first, last = map(int, entry["data_offsets"])  # type: ignore[call-overload]
    dtype, shape = _DTYPES[str(entry["dtype"])], tuple(map(int, entry["shape"]))  # type: ignore[call-overload]
    if first < 0 or last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError("a tensor is not as long as its shape says")
    return Span(path, begin + first, last - first, dtype, shape)


def pieces_of(size: int, piece: int = PIECE_BYTES) -> Iterator[tuple[int, int]]:
    """Where the pieces of `size` bytes begin and end."""
    return ((begin, min(begin + piece, size)) for begin in range(0, size, piece))


def read_bytes(file: IO[bytes], span: Span, begin: int, end: int) -> torch.Tensor:
    """Some bytes of a tensor in an open file, from `begin` to before `end`.

    Unlike those of a memory map, the pages that were read do not count as this process's memory.

    Raises:
        ValueError: the file ends before.
        OSError: it can't be read.
    """
    buffer = torch.empty(end - begin, dtype=torch.uint8)
    view = view_bytes(buffer)
    file.seek(span.offset + begin)
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise ValueError(f"{span.file.name} ends too early")
        view = view[count:]
    return buffer


def view_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a tensor of bytes."""
    array: Any = tensor.numpy()  # numpy's types don't say that an array is a buffer
    return memoryview(array)


def write_header(file: IO[bytes], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the header of a file in which these tensors follow, in this order."""
    file.write(header_of({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}))


def header_of(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    """The header of a file in which tensors of these types and shapes follow, in this order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_tensor(file: IO[bytes], tensor: torch.Tensor) -> Iterator[int]:
    """Write the tensor's bytes piece by piece; after each the CRC-32 of that piece."""
    # A subclass, such as a quantised parameter, would convert itself where its bytes are meant.
    flat = tensor.as_subclass(torch.Tensor).detach().contiguous().reshape(-1).view(torch.uint8)
    for begin, end in pieces_of(flat.numel()):
        piece = view_bytes(flat[begin:end].cpu())
        file.write(piece)
        yield zlib.crc32(piece)
