"""Adds an adapter to a tensor of the base, some rows at a time, so that memory does not grow with the tensor.

The sum is computed in float32 and rounded to bf16 once. PEFT's `merge_and_unload` rounds twice on a base in bf16, the
product and then the sum: of two roundings the second may go the wrong way, and what is left of small changes is noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO

import torch

from lora_trainer.errors import ExportRefusedError
from lora_trainer.export.adapter import LoraModule
from lora_trainer.export.places import Part, rows_of
from lora_trainer.models.weight_files import PIECE_BYTES, Span, pieces_of, read_bytes

_BLOCK_VALUES = 2 << 20
"""How many values are added at a time: 8 MiB in float32."""


def tensor_pieces(file: IO[bytes], span: Span, parts: Sequence[Part], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The tensor at `span` of the open `file` as it is written, one piece after the other, in `dtype`.

    Raises:
        ExportRefusedError: the adapter holds values that are no finite numbers, or its file ends too early.
        ValueError: the base's file ends too early.
        OSError: a file can't be read.
    """
    rows, columns = rows_of(span.shape)
    at = 0
    for part in parts:
        yield from _copied(file, span, at * columns, part.begin * columns, dtype)
        yield from _merged(file, span, part, columns, dtype)
        at = part.end
    yield from _copied(file, span, at * columns, rows * columns, dtype)


def _copied(file: IO[bytes], span: Span, begin: int, end: int, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The values from `begin` to before `end`."""
    size = span.dtype.itemsize
    values = PIECE_BYTES // size * size
    for first, last in pieces_of((end - begin) * size, values):
        yield read_bytes(file, span, begin * size + first, begin * size + last).view(span.dtype).to(dtype)


def _merged(file: IO[bytes], span: Span, part: Part, columns: int, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    a, b, magnitude = read_matrices(part.module)
    row_bytes = columns * span.dtype.itemsize
    step = max(1, _BLOCK_VALUES // columns)
    for first in range(0, part.end - part.begin, step):
        last = min(first + step, part.end - part.begin)
        begin = (part.begin + first) * row_bytes
        read = read_bytes(file, span, begin, begin + (last - first) * row_bytes)
        weight = read.view(span.dtype).reshape(-1, columns).float()
        weight.addmm_(b[first:last], a, alpha=part.module.scale)
        if magnitude is not None:
            # DoRA (arXiv 2402.09353, equation 5): each row of the sum gets the length that was learned for it.
            weight.mul_((magnitude[first:last] / weight.norm(dim=1))[:, None])
        yield weight.to(dtype)


def read_matrices(module: LoraModule) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A, B and magnitudes of a module, in float32.

    Raises:
        ExportRefusedError: they hold values that are no finite numbers, or the adapter's file ends too early.
    """
    try:
        with module.a.file.open("rb") as file:
            a, b = _whole(file, module.a), _whole(file, module.b)
            magnitude = None if module.magnitude is None else _whole(file, module.magnitude).reshape(-1)
    except ValueError:
        # Not left to the caller, who would take it for the base's file.
        raise ExportRefusedError(
            f"The adapter's file {module.a.file.name} is shorter than it was.", "Fetch the adapter once more."
        ) from None
    if not all(bool(each.isfinite().all()) for each in (a, b, magnitude) if each is not None):
        raise ExportRefusedError(
            f"The adapter's matrices of {module.name} hold values that are no finite numbers.", "Train it again."
        )
    return a, b, magnitude


def _whole(file: IO[bytes], span: Span) -> torch.Tensor:
    return read_bytes(file, span, 0, span.size).view(span.dtype).reshape(span.shape).float()
