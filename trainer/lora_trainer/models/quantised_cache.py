"""Keeps quantised base models on the volume, so that the next job on the same base reads a quarter of the bytes.

    <volume>/quantised-models/<key>/model.safetensors    the weights, packed ones with their constants
    <volume>/quantised-models/<key>/manifest.json        what they were made from, their size and checksums
    <volume>/quantised-models/<key>.writing/<id>/        a copy that is being written

The key is a hash of all that the bytes depend on: files of the base, quantisation, precision, versions of libraries.
A copy gets its name when it is whole. What is read is compared with the checksums, and a copy that differs, or was
made from something else, is removed and never used. Only safetensors and JSON are read, nothing that could run code;
as to its content, a copy is as trustworthy as the base models beside it, which the same jobs could change.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from pydantic import BaseModel, ValidationError

from lora_trainer.models.copies_on_volume import (
    FOLDER,
    MANIFEST_NAME,
    WRITING,
    choose_evictions,
    entries_in,
    evict,
    remove,
    remove_leftovers,
)
from lora_trainer.models.weight_files import PIECE_BYTES, Span, read_spans, write_header, write_tensor
from lora_trainer.run.logs import describe

log = logging.getLogger(__name__)

FORMAT = 1
"""Of these files. A change of what they hold or mean needs another number."""
SPARE_BYTES = 10 * 10**9
"""So much must stay free on the volume, for downloads, checkpoints and adapters."""
_WEIGHTS = "model.safetensors"
_MOST_MANIFEST_BYTES = 64 << 20
_ROOM_BYTES = 256 << 20
"""While a copy is written, the free disk is looked at each time that so much more was written."""
_MOST_STOP_SECONDS = 10
"""A training that ends waits so long for the thread that writes; what that leaves is removed by a later one."""

Facts = dict[str, Any]
"""What a copy was made from, as JSON values."""


class _Manifest(BaseModel):
    facts: Facts
    size: int
    checksums: dict[str, list[int]]
    """For each tensor the CRC-32 of each of its pieces of `PIECE_BYTES`."""


class Copy(NamedTuple):
    """A quantised model on the volume, which passed all checks that need no reading of its weights."""

    spans: dict[str, Span]
    checksums: dict[str, list[int]]


class NoRoomError(Exception):
    """A copy is not written, because the volume has too little room, or the setting allows less."""


def key_of(facts: Facts) -> str:
    """The name of the folder of a copy that was made from this."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


class QuantisedCache:
    """The copies on one volume, and the thread that writes a new one while the training goes on.

    `most_bytes` is what all copies together may take; 0: none is read or written. As a context it stops writing when
    it ends: a training that is over before its base was written leaves that to the next.
    """

    def __init__(self, volume: Path, most_bytes: int) -> None:
        self.is_on = most_bytes > 0
        self._folder = volume / FOLDER
        self._most_bytes = most_bytes
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.wait(_MOST_STOP_SECONDS)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the copy that is being written is whole, or for so many seconds."""
        if self._thread is not None:
            self._thread.join(seconds)

    def find(self, facts: Facts) -> Copy | None:
        """The copy that was made from `facts`; None if there is none, or none that can be trusted, which is removed."""
        folder = self._folder / key_of(facts)
        if not folder.is_dir():
            return None
        try:
            copy = _open_copy(folder, facts)
            os.utime(folder / MANIFEST_NAME)  # the time of its last use
        except OSError as error:
            log.warning("the quantised copy of %s can't be read: %s", facts["base"], describe(error))
            return None
        except ValueError as error:
            log.warning("the quantised copy of %s is damaged or foreign: %s", facts["base"], error)
            self.discard(facts)
            return None
        return copy

    def discard(self, facts: Facts) -> None:
        """Remove the copy that was made from `facts`."""
        remove(self._folder / key_of(facts))

    def begin_writing(self, facts: Facts, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a copy in a thread of its own. Until then `tensors` must not change."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._thread = threading.Thread(target=self._write, args=(facts, tensors), name="quantised-cache", daemon=True)
        self._thread.start()

    def _write(self, facts: Facts, tensors: Mapping[str, torch.Tensor]) -> None:
        begun = time.monotonic()
        try:
            # The copies from the GPU must not wait for the kernels of the training, nor those for them.
            stream: Any = torch.cuda.Stream() if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream):
                size = self.write(facts, tensors)
        except NoRoomError as reason:
            log.info("no quantised copy of %s is kept: %s", facts["base"], reason)
        except Exception as error:
            log.warning("the quantised copy of %s was not written: %s", facts["base"], describe(error))
        else:
            if size:
                seconds = time.monotonic() - begun
                log.info("wrote a quantised copy of %s: %.1f GB in %.0f s", facts["base"], size / 1e9, seconds)

    def write(self, facts: Facts, tensors: Mapping[str, torch.Tensor]) -> int:
        """Write a copy. Returns its bytes; 0 if it is there, another execution writes it, or the training is over.

        Raises:
            NoRoomError: there is too little room.
            OSError: the disk failed.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._folder)
        final = self._folder / key_of(facts)
        claim = final.with_name(final.name + WRITING)
        # Of two executions one makes this folder. What it writes goes into one of its own inside: should it be so slow
        # that another clears its claim and makes a new one, the files of both must not mix.
        own = claim / uuid.uuid4().hex
        try:
            claim.mkdir()
        except FileExistsError:
            return 0
        try:
            if final.exists():
                return 0
            self._make_room(sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
            own.mkdir()
            size = self._write_files(own, facts, tensors)
            if size:
                own.rename(final)
            return size
        finally:
            shutil.rmtree(own, ignore_errors=True)
            with suppress(OSError):  # it is not empty where another execution cleared ours and made its own
                claim.rmdir()

    def _write_files(self, folder: Path, facts: Facts, tensors: Mapping[str, torch.Tensor]) -> int:
        checksums: dict[str, list[int]] = {}
        unchecked = 0
        with (folder / _WEIGHTS).open("wb", buffering=0) as file:
            write_header(file, tensors)
            for name, tensor in tensors.items():
                sums = checksums[name] = []
                for checksum in write_tensor(file, tensor):
                    sums.append(checksum)
                    unchecked += PIECE_BYTES
                    if self._stop.is_set():
                        return 0
                    if unchecked >= _ROOM_BYTES:
                        unchecked = 0
                        # Gigabytes that wait to be written would hold up checkpoints, and the end of the process.
                        os.fsync(file.fileno())
                        self._check_room_left()
            os.fsync(file.fileno())
            size = file.tell()
        manifest = _Manifest(facts=facts, size=size, checksums=checksums)
        with (folder / MANIFEST_NAME).open("w", encoding="utf-8") as file:
            file.write(manifest.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        return size

    def _check_room_left(self) -> None:
        if shutil.disk_usage(self._folder).free < SPARE_BYTES:
            raise NoRoomError("the volume filled up meanwhile")

    def _make_room(self, needed: int) -> None:
        chosen = choose_evictions(
            entries_in(self._folder),
            needed,
            most_bytes=self._most_bytes,
            free_bytes=shutil.disk_usage(self._folder).free - SPARE_BYTES,
            now=time.time(),
        )
        if chosen is None:
            raise NoRoomError(
                f"it takes {needed / 1e9:.1f} GB, and the volume has too little room, or the setting allows too little"
            )
        evict(chosen)


def _open_copy(folder: Path, facts: Facts) -> Copy:
    manifest_path = folder / MANIFEST_NAME
    if manifest_path.stat().st_size > _MOST_MANIFEST_BYTES:
        raise ValueError("its manifest is too large")
    try:
        manifest = _Manifest.model_validate_json(manifest_path.read_bytes())
    except ValidationError:  # its text would quote the file
        raise ValueError("its manifest can't be read") from None
    if manifest.facts != facts:
        raise ValueError("it was made from something else")
    weights = folder / _WEIGHTS
    if weights.stat().st_size != manifest.size:
        raise ValueError("its weights are not all there")
    spans = read_spans(weights)
    pieces = {name: -(-span.size // PIECE_BYTES) for name, span in spans.items()}
    if pieces != {name: len(sums) for name, sums in manifest.checksums.items()}:
        raise ValueError("its checksums are not those of its weights")
    return Copy(spans, manifest.checksums)
