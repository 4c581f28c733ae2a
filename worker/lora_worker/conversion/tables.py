"""Reads the rows of CSV and Parquet files as objects, which the reader of datasets then knows by their keys."""

from __future__ import annotations

import csv
import datetime
import decimal
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_conversations.documents import MAX_VALUE_BYTES
from lora_worker.conversion.tally import Tally
from lora_worker.errors import ArgumentError

MOST_ROWS = 5_000_000
"""The most rows of a table: more than any training of an adapter learns, and an hour of reading."""
MOST_GROUP_BYTES = 1 << 30
"""The most bytes that one row group of a Parquet file may unpack to: one group is in memory at a time."""

_HEAD_BYTES = 1 << 16
_DELIMITERS = ",;\t|"
_BATCH_ROWS = 256
_TEXTS = frozenset({"true", "false"})
_PYARROW = "reading Parquet needs pyarrow: pip install '.[parquet]' in the clone"

Numbered = tuple[int, dict[str, Any]]
"""The number of a row, from 1 (of a CSV file, the line in which it ends), and its cells by column."""


def read_csv(path: Path, tally: Tally) -> Iterator[Numbered]:
    """Yield the rows of a CSV file with a header; the separator is found from its beginning.

    Raises:
        ArgumentError: it is not UTF-8, has no header, a column twice, or too many rows.
        OSError: it can't be read.
    """
    csv.field_size_limit(MAX_VALUE_BYTES)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.read(_HEAD_BYTES)
            file.seek(0)
            yield from _csv_rows(csv.reader(file, delimiter=_delimiter(head), strict=True), tally)
    except UnicodeDecodeError:
        raise ArgumentError("IN: the file is not UTF-8: save it as “CSV UTF-8” and try again") from None


def _csv_rows(reader: Any, tally: Tally) -> Iterator[Numbered]:
    names: list[str] | None = None
    for count in range(MOST_ROWS + 2):
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ArgumentError(
                f"IN: line {reader.line_num} is no CSV ({error}): a quote is open or a cell is too long"
            ) from None
        if names is None:
            names = _columns(cells)
        elif len(cells) > len(names):
            tally.add("a row with more cells than the header has", reader.line_num)
        elif row := _texts(zip(names, cells, strict=False)):
            yield reader.line_num, row
        if count > MOST_ROWS:
            raise _too_many()


def _delimiter(head: str) -> str:
    """Return the separator that the header has most often; a comma where it has none."""
    header = head.partition("\n")[0]
    return max(_DELIMITERS, key=header.count)


def _columns(cells: list[str]) -> list[str]:
    names = [cell.strip().lower().replace(" ", "_") for cell in cells]
    named = [name for name in names if name]
    if not named:
        raise ArgumentError("IN: the first line names no columns: add a header such as question,answer")
    if len(set(named)) < len(named):
        raise ArgumentError("IN: the header names a column twice: rename one of them")
    return names


def _texts(cells: Any) -> dict[str, Any]:
    """Return the cells of a row that have a name and a text. A cell that holds JSON becomes its value."""
    return {name: _parsed(cell) for name, cell in cells if name and cell.strip()}


def _parsed(cell: str) -> Any:
    text = cell.strip()
    if text[0] not in "[{" and text.lower() not in _TEXTS:
        return cell
    try:
        return json.loads(text if text[0] in "[{" else text.lower())
    except (ValueError, RecursionError):
        # A text that begins like JSON, such as “[laughs] Hello”.
        return cell


def read_parquet(path: Path, tally: Tally) -> Iterator[Numbered]:
    """Yield the rows of a Parquet file.

    Raises:
        ArgumentError: pyarrow is not installed, the file is damaged, or has too many rows or too large row groups.
        OSError: it can't be read.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ArgumentError(_PYARROW) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            _check_size(table.metadata)
            number = 0
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, _plain_row(row, number, tally)
    except (pyarrow.ArrowException, ValueError) as error:
        # The text of pyarrow's errors may quote a value.
        raise ArgumentError(f"IN: the file is no Parquet that can be read ({type(error).__name__})") from None


def _check_size(metadata: Any) -> None:
    if metadata.num_rows > MOST_ROWS:
        raise _too_many()
    largest = max((metadata.row_group(at).total_byte_size for at in range(metadata.num_row_groups)), default=0)
    if largest > MOST_GROUP_BYTES:
        raise ArgumentError(
            f"IN: a row group of the file unpacks to {largest:,} bytes, and {MOST_GROUP_BYTES:,} fit: write it again "
            "with smaller row groups"
        )


def _plain_row(row: dict[str, Any], number: int, tally: Tally) -> dict[str, Any]:
    plain = {}
    for name, cell in row.items():
        try:
            value = _plain(cell)
        except TypeError as error:
            tally.add(f"a cell that is {error}", number)
            continue
        if value is not None:
            plain[str(name)] = _parsed(value) if isinstance(value, str) and value.strip() else value
    return plain


def _plain(value: Any) -> Any:
    """Return a cell as JSON has it.

    Raises:
        TypeError: it holds bytes or something else that JSON has no form for; the text says what.
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case dict():
            # Parquet gives each object of a list all keys that any of them has.
            return {str(key): _plain(item) for key, item in value.items() if item is not None}
        case list() | tuple():
            return [_plain(item) for item in value]
        case datetime.date() | datetime.time():
            return value.isoformat()
        case decimal.Decimal():
            return float(value)
    raise TypeError("bytes" if isinstance(value, bytes) else "of a type that JSON has not")


def _too_many() -> ArgumentError:
    return ArgumentError(f"IN: the file has more than {MOST_ROWS:,} rows: split it")
