"""Converts a file of conversations into JSON Lines of messages, and counts by reason what it can't take.

Whatever the reader of datasets knows (`docs/formats.md`) can be converted; rows of tables and chat exports become
objects that it knows. So a converted file holds what the training would read. One value is in memory at a time.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from lora_conversations.documents import OuterKeys
from lora_conversations.errors import DatasetUnusableError, LineError
from lora_conversations.preferences import Sample
from lora_conversations.unused import unused_keys_note
from lora_conversations.values import ValueReader
from lora_worker.conversion.documents import Piece, read_document
from lora_worker.conversion.lines import as_line
from lora_worker.conversion.tables import read_csv, read_parquet
from lora_worker.conversion.tally import LeftOut, Tally
from lora_worker.errors import ArgumentError

MOST_BYTES = 2 << 30
"""The most bytes of a file that is converted: four times what a dataset may have."""
_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True, slots=True)
class Conversion:
    """What became of a file."""

    source: str
    """How it was read: `csv`, `parquet` or `json`."""
    read: int
    """Rows, lines or elements of the file."""
    written: int
    """Examples in the new file."""
    left_out: list[LeftOut]
    notes: list[str]
    """Sentences on what was changed."""


def convert(source: Path, target: Path, *, force: bool = False) -> Conversion:
    """Convert a file. The new one appears when it is whole, or not at all.

    Raises:
        ArgumentError: the file can't be read, is too large or of no known form; the new one is there already, can't be
            written, or would be empty.
    """
    try:
        _check_paths(source, target, force=force)
        kind, tally = _kind(source), Tally()
        # Without a method, pairs stay pairs and thumbs stay thumbs.
        reader = ValueReader(None)
        with _written_atomically(target) as out:
            read, written = _write(_pieces(source, kind, reader, tally), out, reader, tally)
            _count_silent(reader, tally)
            if not written:
                raise ArgumentError(f"IN: nothing of {source.name} can be converted{_why(tally)}")
    except DatasetUnusableError as error:
        raise ArgumentError(f"IN: {error.sentence()}") from None
    except OSError as error:
        place = error.filename or source
        raise ArgumentError(f"{place} can't be used ({error.strerror or type(error).__name__})") from None
    return Conversion(kind, read, written, tally.result(), _notes(reader))


def _check_paths(source: Path, target: Path, *, force: bool) -> None:
    if not source.is_file():
        raise ArgumentError(f"IN: {source} is no file")
    if source.stat().st_size > MOST_BYTES:
        raise ArgumentError(f"IN: {source.name} has more than {MOST_BYTES:,} bytes: split it")
    if not target.exists():
        return
    if not target.is_file() or target.samefile(source):
        raise ArgumentError(f"OUT: {target} is the file itself, or none: choose another name")
    if not force:
        raise ArgumentError(f"OUT: {target} is there already: choose another name, or replace it with --force")


def _kind(source: Path) -> str:
    """Tell how to read a file: Parquet by its first bytes, CSV by its name; the reader of JSON looks at the rest."""
    with source.open("rb") as file:
        if file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC:
            return "parquet"
    return "csv" if source.suffix.lower() in {".csv", ".tsv"} else "json"


def _pieces(source: Path, kind: str, reader: ValueReader, tally: Tally) -> Iterator[Piece | LineError]:
    if kind == "json":
        return read_document(source, reader.repairs, tally)
    rows = read_csv(source, tally) if kind == "csv" else read_parquet(source, tally)
    return (Piece(number, row) for number, row in rows)


def _write(pieces: Iterator[Piece | LineError], out: TextIO, reader: ValueReader, tally: Tally) -> tuple[int, int]:
    read = written = 0
    for piece in pieces:
        read += 1
        for sample in _samples(piece, reader):
            if isinstance(sample, LineError):
                tally.add(_reason(sample), sample.line)
                continue
            try:
                out.write(as_line(sample))
            except UnicodeEncodeError:
                tally.add("a text with half of a character (a lone surrogate)", sample.line)
                continue
            written += 1
    return read, written


def _samples(piece: Piece | LineError, reader: ValueReader) -> list[Sample | LineError] | list[LineError]:
    if isinstance(piece, LineError):
        return [piece]
    if isinstance(piece.value, OuterKeys):
        return reader.read_outer_keys(piece.value.names, piece.line, piece.value.container)
    return reader.read(piece.value, piece.line, piece.key)


def _reason(error: LineError) -> str:
    return f"{error.key or 'it'} {error.error}"


def _count_silent(reader: ValueReader, tally: Tally) -> None:
    """Count what the reader leaves out on purpose."""
    if reader.unwanted:
        tally.add(
            "marked as not to be learned (weight 0, train or loss false)", reader.first_unwanted_line, reader.unwanted
        )
    if reader.skipped:
        tally.add("a pair without an answer (target_response is null)", reader.first_skipped_line, reader.skipped)


def _notes(reader: ValueReader) -> list[str]:
    unused = reader.unused.result()
    notes = [unused_keys_note(unused)] if unused else []
    return [*notes, *(f"Put right: {repair.value} ({count:,} ×)." for repair, count in reader.repairs.items() if count)]


def _why(tally: Tally) -> str:
    found = tally.result()
    return f": {found[0].reason} (line {found[0].first:,} first)" if found else ": it is empty"


@contextlib.contextmanager
def _written_atomically(target: Path) -> Iterator[TextIO]:
    """Open a file beside the target that takes its place at the end, and is removed where that is not reached."""
    try:
        file = tempfile.NamedTemporaryFile(  # noqa: SIM115 - closed below, before it is renamed
            "w",
            encoding="utf-8",
            newline="\n",
            dir=target.parent,
            prefix=f".{target.name}.",
            suffix=".part",
            delete=False,
        )
    except OSError as error:
        raise ArgumentError(f"OUT: {target} can't be written ({error.strerror or type(error).__name__})") from None
    try:
        with file:
            yield file  # type: ignore[misc]
            file.flush()
            os.fsync(file.fileno())
        # A temporary file is closed to others; the new file is as open as any.
        umask = os.umask(0)
        os.umask(umask)
        Path(file.name).chmod(0o666 & ~umask)
        Path(file.name).replace(target)
    finally:
        Path(file.name).unlink(missing_ok=True)
