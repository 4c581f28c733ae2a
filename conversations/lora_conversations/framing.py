"""Parses the bytes of a dataset into JSON values, each with its line number, as the bytes arrive.

A file is read as JSON Lines or as JSON documents (`lora_conversations.documents`). Its first bytes decide this, not its
name. In JSON Lines a bad line becomes a `LineError`, and reading continues with the next line.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Generator, Iterator

import orjson

from lora_conversations.documents import (
    MAX_VALUE_BYTES,
    DocumentReader,
    Frame,
    Framed,
    cut_off_error,
    not_utf8,
    too_long_error,
)
from lora_conversations.errors import DatasetUnusableError, LineError
from lora_conversations.examples import Repair
from lora_conversations.json_text import KeyWatch, reason
from lora_conversations.tools import ARGUMENTS

_HEAD_BYTES = 64 * 1024
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "a gzip archive"),
    (b"PK\x03\x04", "a zip archive or an Office file"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"%PDF", "a PDF file"),
    (b"version https://git-lfs", "a Git LFS pointer without its file"),
    (b"<", "an HTML or XML page"),
)
_UTF_16_32 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_SAVE_AS_UTF8 = "Save it as UTF-8 and upload it again."
_SPACED_KEY = re.compile(rb'"[ \t\r]+:')
_ARGUMENTS = re.compile('"(?:{})"'.format("|".join(ARGUMENTS)).encode())
_LONG_NUMBER = re.compile(rb"\d{19}")
_OPENING_LINE = re.compile(rb"^[ \t\r]*[{\[]", re.MULTILINE)


class Framer:
    """An incremental parser: call `feed` with bytes as they arrive, then `close`.

    Raises, from `feed` and `close`:
        DatasetUnusableError: the file can't be read, or can't be read any further.
    """

    def __init__(self, repairs: Counter[Repair]) -> None:
        self._repairs = repairs
        self._json = KeyWatch()
        self._bytes = bytearray()
        self._ended = False
        self._line = 1
        self._frames = self._read()

    def feed(self, chunk: bytes) -> Iterator[Frame | LineError]:
        """Yield the values that this chunk completes."""
        self._bytes += chunk
        for frame in self._frames:
            if frame is None:
                return
            yield frame

    def close(self) -> Iterator[Frame | LineError]:
        """Yield the values that the end of the file completes."""
        self._ended = True
        return self.feed(b"")

    def _read(self) -> Framed:
        while len(self._bytes) < _HEAD_BYTES and not self._ended:
            yield None
        if self._bytes.startswith(codecs.BOM_UTF8):
            del self._bytes[: len(codecs.BOM_UTF8)]
        _check_head(bytes(self._bytes[:_HEAD_BYTES]))
        while not (begun := self._skip_blank_lines()) and not self._ended:
            yield None
        if not begun:
            raise DatasetUnusableError("The dataset is empty.", "Upload a file with at least one example.")
        if begun == b"[" or (yield from self._is_document()):
            yield from self._documents()
        else:
            yield from self._lines()

    def _skip_blank_lines(self) -> bytes:
        """Drop leading white space, and return the first byte after it; empty if there is none yet."""
        blank = len(self._bytes) - len(self._bytes.lstrip())
        self._line += self._bytes.count(b"\n", 0, blank)
        del self._bytes[:blank]
        return bytes(self._bytes[:1])

    def _is_document(self) -> Generator[None, None, bool]:
        """Tell whether the file is a JSON document: its first value continues after the first line.

        If the first line is incomplete but the second is an object of its own, the file is JSON Lines with a bad line.
        """
        end = yield from self._find_line_end(0)
        if end < 0:
            return True
        if not _is_cut(bytes(self._bytes[:end])):
            return False
        second_end = yield from self._find_line_end(end + 1)
        try:
            second = orjson.loads(self._bytes[end + 1 : second_end if second_end >= 0 else None])
        except orjson.JSONDecodeError:
            return True
        return not isinstance(second, dict)

    def _find_line_end(self, start: int) -> Generator[None, None, int]:
        """Return the index of the line's end; -1 if the file ends before it, or the line is longer than allowed."""
        limit = start + MAX_VALUE_BYTES + 1
        while (end := self._bytes.find(b"\n", start, limit)) < 0 and len(self._bytes) < limit and not self._ended:
            yield None
        return end

    def _documents(self) -> Framed:
        document = DocumentReader(self._line, self._repairs)
        frames = document.read()
        while True:
            document.add(bytes(self._bytes), ended=self._ended)
            self._bytes.clear()
            for frame in frames:
                if frame is None:
                    break
                yield frame
            else:
                return
            yield None

    def _lines(self) -> Framed:
        searched = 0
        while True:
            end = self._bytes.rfind(b"\n", searched)
            if end >= 0:
                block = bytes(self._bytes[:end])
                del self._bytes[: end + 1]
                yield from self._parse_block(block)
            if self._ended:
                break
            searched = len(self._bytes)
            if searched > MAX_VALUE_BYTES:
                yield from self._skip_long_line()
                searched = 0
            yield None
        if _is_cut(bytes(self._bytes)):
            raise cut_off_error(self._line)
        yield from self._parse_block(bytes(self._bytes))

    def _parse_block(self, block: bytes) -> Iterator[Frame | LineError]:
        for raw in block.split(b"\n"):
            if len(raw) > MAX_VALUE_BYTES:
                yield too_long_error(self._line)
            elif raw and not raw.isspace():
                yield self._parse(raw)
            self._line += 1

    def _parse(self, raw: bytes) -> Frame | LineError:
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError:
            if raw.rstrip().endswith(b","):
                return self._parse_before_comma(raw)
            return self._parse_slowly(raw)
        if _may_double_a_key(raw, value) or _may_round_a_number(raw):
            return self._parse_slowly(raw)
        return Frame(self._line, value)

    def _parse_before_comma(self, raw: bytes) -> Frame | LineError:
        """Parse a line that ends with a comma, as if it were cut out of a list; the comma is dropped."""
        frame = self._parse_slowly(raw.rstrip()[:-1])
        if isinstance(frame, LineError):
            return self._parse_slowly(raw)
        self._repairs[Repair.TRAILING_COMMA] += 1
        return frame

    def _parse_slowly(self, raw: bytes) -> Frame | LineError:
        """Parse a line that orjson refused, with Python's parser: it accepts NaN, and explains errors better."""
        if b"\x00" in raw:
            again = "Write the file again: they come from a broken copy or from UTF-16."
            return LineError(self._line, None, "holds zero bytes", again)
        try:
            text = raw.decode()
            value, end = self._json.decode(text, len(text) - len(text.lstrip(" \t\r")))
            if text[end:].strip(" \t\r"):
                raise json.JSONDecodeError("Extra data", text, end)
            return Frame(self._line, value, doubled=self._json.doubled)
        except UnicodeDecodeError as error:
            return LineError(self._line, None, *not_utf8(error))
        except (ValueError, RecursionError) as error:
            why = f"is not valid JSON ({reason(error)})"
            return LineError(self._line, None, why, "Fix the line or remove it.")

    def _skip_long_line(self) -> Framed:
        while (end := self._bytes.find(b"\n")) < 0 and not self._ended:
            self._bytes.clear()
            yield None
        del self._bytes[: end + 1 if end >= 0 else None]
        yield too_long_error(self._line)
        self._line += 1


def _may_double_a_key(raw: bytes, value: object) -> bool:
    """Tell whether an object of the line may have a key twice; orjson would keep only the last value.

    The parsed value is written as JSON again: it has fewer keys than the line if one was doubled. A quote with a colon
    inside a text is counted on both sides, so it makes no difference.
    """
    if _SPACED_KEY.search(raw):
        return True
    try:
        return raw.count(b'":') != orjson.dumps(value).count(b'":')
    except TypeError:  # orjson reads deeper nesting than it writes
        return True


def _may_round_a_number(raw: bytes) -> bool:
    """Tell whether arguments of a call may hold an integer that orjson would turn into a rounded number."""
    return _ARGUMENTS.search(raw) is not None and _LONG_NUMBER.search(raw) is not None


def _is_cut(raw: bytes) -> bool:
    """Tell whether a line is the beginning of a valid JSON value whose rest is missing."""
    if not raw or raw.isspace():
        return False
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if error.msg.startswith("unexpected end of data"):
            return True
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def _check_head(head: bytes) -> None:
    """Refuse files that are obviously not JSON, and name their type for the user.

    Raises:
        DatasetUnusableError: the file is an archive, a database, a page, or is not UTF-8 text.
    """
    begun = head.lstrip()
    for magic, what in _FOREIGN:
        if begun.startswith(magic):
            raise DatasetUnusableError(f"The dataset is {what}, not JSON.", "Upload the JSON file itself.")
    if head and not head.strip(b"\x00"):
        raise DatasetUnusableError("The dataset consists of zero bytes.", "Upload the file again.")
    if head.startswith(_UTF_16_32) or b"\x00" in head[:4]:
        raise DatasetUnusableError("The dataset is UTF-16 or UTF-32 text, not UTF-8.", _SAVE_AS_UTF8)
    if begun and not _OPENING_LINE.search(head):
        raise DatasetUnusableError(
            "The dataset is not JSON: none of its first lines begins with { or [.",
            "Upload JSON Lines, with one example a line, or a JSON file.",
        )
