"""Reads the weights of a model from the disk while earlier ones are still being converted.

transformers' loader, when it quantises, reads one tensor through a memory map, copies it to the GPU, quantises it, and
only then begins with the next: disk and GPU wait for each other, and a network volume is read in small pieces by one
thread. Here several threads read large pieces in the order in which the loader will ask for them. On machines with a
GPU they read into pinned memory, from which a copy to the GPU is several times as fast.
"""

from __future__ import annotations

import os
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from transformers import modeling_utils
from transformers.core_model_loading import dot_natural_key

from lora_trainer.models.weight_files import PIECE_BYTES, Span, pieces_of, view_bytes

_MOST_THREADS = 8
_MOST_BYTES = 1 << 30
"""How much is held that was read, but not asked for yet."""
_EXPERT = re.compile(r"\.experts\.(\d+)\.(.+)$")


class DamagedWeightsError(Exception):
    """The bytes on the disk are not those that were written."""


class _Weight:
    """One tensor on its way from the disk."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.buffer: torch.Tensor | None = None
        self.pieces_left = -1
        """-1: nobody has begun to read it."""
        self.error: Exception | None = None


class ReadAhead:
    """The tensors of safetensors files, read by background threads while this context is open.

    `pinned` asks for buffers in pinned memory. `checksums` holds, for each tensor, the CRC-32 of each of its pieces.
    """

    def __init__(
        self,
        spans: Mapping[str, Span],
        *,
        pinned: bool,
        checksums: Mapping[str, Sequence[int]] | None = None,
        most_bytes: int = _MOST_BYTES,
        threads: int | None = None,
    ) -> None:
        self.spans = spans
        self._weights = {name: _Weight(span) for name, span in spans.items()}
        self._pinned = pinned
        self._checksums = checksums
        self._most_bytes = most_bytes
        self._held_bytes = 0
        self._given: set[str] = set()
        self._change = threading.Condition()
        self._closed = False
        self._taking = threading.Lock()
        self._todo = self._plan_pieces()
        self._files: dict[Path, int] = {}
        self._threads = [
            threading.Thread(target=self._read_pieces, name=f"read-ahead-{number}", daemon=True)
            for number in range(threads or _choose_threads())
        ]

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            for file in dict.fromkeys(span.file for span in self.spans.values()):
                self._files[file] = os.open(file, os.O_RDONLY)
                opened.callback(os.close, self._files[file])
            self._opened = opened.pop_all()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()
        self._opened.close()
        self._weights.clear()
        if self._pinned:
            _free_pinned_memory()

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in main memory, waited for if necessary.

        Raises:
            DamagedWeightsError: a checksum differs, or the file has become shorter.
            OSError: the disk failed.
        """
        weight = self._weights[name]
        with self._change:
            # The threads wait for room: to wait for one that they have not begun could be for ever.
            own = weight.pieces_left < 0
            if own:
                self._begin(weight)
        if own:
            for begin, end in pieces_of(weight.span.size):
                self._read_piece(name, weight, begin, end)
        with self._change:
            self._change.wait_for(lambda: weight.pieces_left == 0)
            buffer, error = weight.buffer, weight.error
            self._weights[name] = _Weight(weight.span)  # so that it can be asked for again
            self._given.add(name)
            self._held_bytes -= weight.span.size
            self._change.notify_all()
        if error is not None:
            raise error
        assert buffer is not None  # set by `_begin`
        return buffer.view(weight.span.dtype).reshape(weight.span.shape)

    def _begin(self, weight: _Weight) -> None:
        weight.buffer = self._allocate(weight.span.size)
        weight.pieces_left = sum(1 for _ in pieces_of(weight.span.size))
        self._held_bytes += weight.span.size

    def _allocate(self, size: int) -> torch.Tensor:
        if self._pinned:
            try:
                return torch.empty(size, dtype=torch.uint8, pin_memory=True)
            except RuntimeError:  # a container may not be allowed to pin so much
                self._pinned = False
        return torch.empty(size, dtype=torch.uint8)

    def _read_pieces(self) -> None:
        """What each thread does."""
        while True:
            # A generator can't be entered twice: while one thread waits in it for room, the others wait for the lock.
            with self._taking, self._change:
                task = next(self._todo, None)
            if task is None:
                return
            self._read_piece(*task)

    def _plan_pieces(self) -> Iterator[tuple[str, _Weight, int, int]]:
        """What the threads read, in the order of the loader. Runs while the condition is held."""
        for name in sorted(self._weights, key=_loading_order):
            size = self.spans[name].size
            self._change.wait_for(lambda size=size: self._closed or self._has_room(size))  # type: ignore[misc]
            weight = self._weights[name]
            if weight.pieces_left >= 0 or name in self._given:
                continue  # it was asked for already
            self._begin(weight)
            for begin, end in pieces_of(weight.span.size):
                if self._closed:
                    return
                yield name, weight, begin, end

    def _has_room(self, size: int) -> bool:
        return self._held_bytes == 0 or self._held_bytes + size <= self._most_bytes

    def _read_piece(self, name: str, weight: _Weight, begin: int, end: int) -> None:
        error: Exception | None = None
        try:
            assert weight.buffer is not None  # set by `_begin`
            piece = view_bytes(weight.buffer[begin:end])
            _read_fully(self._files[weight.span.file], piece, weight.span.offset + begin)
            if self._checksums is not None and zlib.crc32(piece) != self._checksums[name][begin // PIECE_BYTES]:
                error = DamagedWeightsError("a checksum differs")
        except Exception as raised:  # handed on to the one who asks for this tensor
            error = raised
        with self._change:
            weight.error = weight.error or error
            weight.pieces_left -= 1
            self._change.notify_all()


def _choose_threads() -> int:
    """A network volume is faster with many; but all of them copy, for which more than there are cores only compete."""
    return max(2, min(_MOST_THREADS, os.cpu_count() or _MOST_THREADS))


def _free_pinned_memory() -> None:
    """Give pinned memory back to the machine, which torch would keep for as long as the training lasts."""
    if hasattr(torch.accelerator, "empty_host_cache"):  # older releases of torch have none
        torch.accelerator.empty_host_cache()


def _read_fully(descriptor: int, buffer: memoryview, offset: int) -> None:
    while buffer:
        count = os.preadv(descriptor, [buffer], offset)
        if count == 0:
            raise DamagedWeightsError("the file ends too early")
        buffer, offset = buffer[count:], offset + count


def _loading_order(name: str) -> Any:
    """Sorts names as the loader asks for them: by layer, and all experts of a projection one after the other.

    Where a model's loader takes another order, tensors are read when they are asked for.
    """
    return dot_natural_key(_EXPERT.sub(r".experts.\2.\1", name))


class _Slice:
    """What the loader gets for a tensor. It reads it by `slice[...]`."""

    def __init__(self, read: Callable[[], Any], span: Span) -> None:
        self._read = read
        self._span = span

    def __getitem__(self, _: Any) -> Any:
        return self._read()

    def get_shape(self) -> list[int]:
        return list(self._span.shape)


class _OpenFile:
    """Stands for an open safetensors file."""

    def __init__(self, slices: dict[str, _Slice]) -> None:
        self._slices = slices

    def keys(self) -> list[str]:
        return list(self._slices)

    def get_slice(self, name: str) -> _Slice:
        return self._slices[name]

    def __exit__(self, *_: object) -> None:
        pass


@contextmanager
def serving(files: Sequence[Path], readers: Mapping[str, tuple[Callable[[], Any], Span]]) -> Iterator[None]:
    """While this context is open, transformers' loader gets `readers`' tensors in place of those in `files`.

    `readers` has, by name, a function that reads the tensor. The first of the files that is opened holds them all, the
    others none; files beside them are opened as always.
    """
    left = {name: _Slice(read, span) for name, (read, span) in readers.items()}
    known = {file.resolve() for file in files}
    original = modeling_utils.safe_open

    def open_file(path: Any, *arguments: Any, **options: Any) -> Any:
        if Path(path).resolve() not in known:
            return original(path, *arguments, **options)
        slices = dict(left)
        left.clear()
        return _OpenFile(slices)

    loader: Any = modeling_utils
    loader.safe_open = open_file
    try:
        yield
    finally:
        loader.safe_open = original
