"""Reads JSON documents element by element, so that a file of any size needs the memory of one element only.

A document is one JSON value, pretty-printed or not; a file may hold several, one after the other. The elements of an
outermost list, and of a list of examples in an outermost object, are returned one by one. If the JSON syntax is broken,
the reader can't know where the next element begins, so it raises `DatasetUnusableError`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Generator, Iterable
from typing import Any, NamedTuple, NoReturn

from lora_conversations.errors import DatasetUnusableError, LineError
from lora_conversations.examples import Repair
from lora_conversations.formats import detect_format, lists_examples, speakable
from lora_conversations.json_text import KeyWatch, reason
from lora_conversations.tools import is_unset
from lora_conversations.values import CONTAINERS, two_lists

MAX_VALUE_BYTES = 4 * 1024 * 1024
"""The largest line or element, about a million tokens. The limit protects the worker's memory: a list of empty lists
takes thirty times its size once it is parsed."""

_MAX_NAMES = 1000
"""The most keys of an object around a list of examples; they are kept until the object ends."""
_RETRY_CHARACTERS = 64 * 1024
"""An incomplete value is parsed again after at least this many more characters."""
_EDGE_CHARACTERS = 16
"""A syntax error this close to the end of the text may only mean that the rest has not arrived yet."""

_SPACE = re.compile(r"[ \t\r\n]*")


class Frame(NamedTuple):
    """A parsed value.

    `line` is where it begins in the file, from 1; `key` is its path in the document, such as `data[3]`. `text` is its
    JSON text if that has several lines, else empty. `doubled` is a key that an object in it has twice, if there is one:
    a JSON parser would keep the last of the two values without an error.
    """

    line: int
    value: Any
    key: str = ""
    text: str = ""
    doubled: str | None = None


class OuterKeys(NamedTuple):
    """The value of the frame that follows the examples of a list: the other keys of the object around that list.

    `container` is the key of the list; `names` are the other keys that have a value.
    """

    container: str
    names: tuple[str, ...]


Framed = Generator[Frame | LineError | None, None, None]
"""A generator of frames that yields None when it needs more bytes."""

AwaitingBytes = Generator[None, None, None]


def not_utf8(error: UnicodeDecodeError) -> tuple[str, str]:
    """Return error and suggestion for bytes that are not UTF-8."""
    byte = error.object[error.start]
    return f"is not UTF-8 (byte 0x{byte:02x})", "Save the file as UTF-8 and upload it again."


def cut_off_error(line: int) -> DatasetUnusableError:
    """Make the error for a file that ends in the middle of a value. Training on it would silently omit the rest."""
    again = "Only a part of it arrived: upload it again."
    cut = LineError(line, None, "is cut: the file breaks off in it", again)
    return DatasetUnusableError(f"The dataset breaks off in the middle of line {line}.", again, [cut])


def too_long_error(line: int) -> LineError:
    """Make the error for a line or element with more than `MAX_VALUE_BYTES`."""
    size = f"is longer than {MAX_VALUE_BYTES // 1024**2} MB"
    return LineError(line, None, size, "No model reads that much in one example: split it, one example a line.")


def doubled_key_error(name: str) -> tuple[str, str]:
    """Return error and suggestion for a key that an object has twice."""
    return f"has the key {speakable(name)} twice", "Keep one of the two."


def _is_example(names: Iterable[str]) -> bool:
    """Tell whether an object with these keys is itself an example, rather than an object around examples."""
    return detect_format(dict.fromkeys(names, True)) is not None


def _unusable(error: LineError) -> DatasetUnusableError:
    message = error._replace(suggestion=None).sentence()
    return DatasetUnusableError(message, error.suggestion, [error])


class DocumentReader:
    """An incremental parser: `add` bytes, then continue the generator that `read` returned."""

    def __init__(self, line: int, repairs: Counter[Repair]) -> None:
        self._repairs = repairs
        self._json = KeyWatch()
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._position = 0
        self._counted = 0
        """The position up to which `_line` has counted the line breaks of `_text`."""
        self._line = line
        self._pinned = False
        """Whether `_text` must be kept from its beginning, because an outermost object may be one single value."""
        self._ended = False
        self._begun = False
        """Whether a document was read already. Only then a comma is accepted (and dropped)."""

    def add(self, raw: bytes, *, ended: bool) -> None:
        """Add the next bytes of the file; `ended` says that they are the last ones.

        Raises:
            DatasetUnusableError: the bytes are not UTF-8.
        """
        self._ended = ended
        self._forget()
        try:
            self._text += self._decoder.decode(raw, final=ended)
        except UnicodeDecodeError as error:
            line = self._line_at(len(self._text)) + error.object.count(b"\n", 0, error.start)
            if ended and error.reason == "unexpected end of data":
                raise cut_off_error(line) from None
            raise _unusable(LineError(line, None, *not_utf8(error))) from None

    def read(self) -> Framed:
        """Yield the values of the documents, and None when more bytes are needed.

        Raises:
            DatasetUnusableError: the JSON syntax is broken, or the file ends in the middle of a value.
        """
        while begun := (yield from self._peek()):
            if begun == "[":
                yield from self._read_list("")
            elif begun == "{":
                yield from self._read_object()
            elif begun == "," and self._begun:
                self._drop_comma()
            else:
                self._fail("Expecting '{' or '['", self._position)
            self._begun = True

    def _drop_comma(self) -> None:
        self._repairs[Repair.TRAILING_COMMA] += 1
        self._position += 1

    def _read_list(self, key: str) -> Framed:
        self._position += 1
        index = 0
        if (yield from self._peek()) == "]":
            self._position += 1
            return
        while True:
            value, start = yield from self._value()
            line = self._count_to(start)
            text = self._text[start : self._position]
            yield Frame(line, value, f"{key}[{index}]", text if "\n" in text else "", self._json.doubled)
            if (yield from self._take(",]")) == "]":
                return
            if (yield from self._peek()) == "]":
                self._position -= 1
                self._drop_comma()
                self._position += 1
                return
            index += 1

    def _read_object(self) -> Framed:
        self._forget()
        self._pinned = True
        line = self._count_to(0)
        self._position += 1
        if (yield from self._peek()) == "}":
            self._position += 1
        else:
            yield from self._read_members(line)
        if self._pinned:
            text = self._text[: self._position]
            self._check_length(self._position)
            self._pinned = False
            value, _ = self._json.decode(text)
            yield Frame(line, value, "", text if "\n" in text else "", self._json.doubled)

    def _read_members(self, line: int) -> Framed:
        """Read the members of an outermost object.

        If one of them is a list of examples, its elements are yielded one by one and `_pinned` becomes false: the
        object's text is then no longer kept.
        """
        filled: dict[str, bool] = {}
        container = doubled = None
        while True:
            if (yield from self._peek()) not in {'"', ""}:
                self._fail("Expecting property name enclosed in double quotes", self._position)
            name, _ = yield from self._value()
            doubled = name if name in filled else doubled
            yield from self._take(":")
            streams = container is None and name in CONTAINERS and (yield from self._lists_examples(filled))
            container = name if streams else container
            if container is not None:
                self._check_names(line, doubled, len(filled))
            if streams:
                self._pinned = filled[name] = False
                yield from self._read_list(name)
            else:
                value, _ = yield from self._value()
                if container is not None and name in CONTAINERS and lists_examples(value):
                    raise _unusable(LineError(line, None, *two_lists(container, name)))
                filled[name] = not is_unset(value)
            if (yield from self._take(",}")) == "}":
                break
        if container is not None:
            yield Frame(line, OuterKeys(container, tuple(name for name in filled if filled[name])))

    def _check_names(self, line: int, doubled: str | None, count: int) -> None:
        """Refuse an object around a list of examples that has a key twice, or more keys than may be kept in memory."""
        if doubled is not None:
            raise _unusable(LineError(line, None, *doubled_key_error(doubled)))
        if count >= _MAX_NAMES:
            raise _unusable(LineError(line, None, f"is an object with more than {_MAX_NAMES:,} keys"))

    def _lists_examples(self, names: Iterable[str]) -> Generator[None, None, bool]:
        """Tell whether a list of examples begins at the current position. Leaves the position unchanged.

        `names` are the keys that the object has before this list: if they make it an example, the list is part of it.
        """
        if (yield from self._peek()) != "[" or _is_example(names):
            return False
        start = self._position
        self._position += 1
        listed = (yield from self._peek()) in {"{", "["}
        if listed:
            value, _ = yield from self._value()
            listed = lists_examples([value])
        self._position = start
        return listed

    def _peek(self) -> Generator[None, None, str]:
        """Skip white space and return the next character without consuming it; "" at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._position)
            self._position = match.end() if match else self._position
            if self._position < len(self._text) or self._ended:
                return self._text[self._position : self._position + 1]
            self._check_length(len(self._text))
            yield None

    def _take(self, expected: str) -> Generator[None, None, str]:
        found = yield from self._peek()
        if not found:
            raise cut_off_error(self._line_at(len(self._text)))
        if found not in expected:
            self._fail(f"Expecting '{expected[0]}'", self._position)
        self._position += 1
        return found

    def _value(self) -> Generator[None, None, tuple[Any, int]]:
        """Consume the next value; returns it and the position in `_text` where it starts."""
        yield from self._peek()
        while True:
            # Adding bytes may drop text before `_position`, so the start has to be read anew after each wait.
            start = self._position
            try:
                value, end = self._json.decode(self._text, start)
            except json.JSONDecodeError as error:
                self._check_cut(error)
            except (ValueError, RecursionError) as error:
                self._fail(reason(error))
            else:
                # A number that ends where the text ends may have more digits in the next chunk.
                if end < len(self._text) or self._ended:
                    self._check_length(end)
                    self._position = end
                    return value, start
            yield from self._wait()

    def _check_cut(self, error: json.JSONDecodeError) -> None:
        """Raise for a real syntax error; return if the error may only mean that more bytes have to arrive."""
        open_text = error.msg.startswith("Unterminated string")
        if self._ended and (open_text or not self._text[error.pos :].strip()):
            raise cut_off_error(self._line_at(len(self._text))) from None
        if self._ended or not (open_text or len(self._text) - error.pos <= _EDGE_CHARACTERS):
            self._fail(error.msg.removesuffix(" at"), error.pos)

    def _wait(self) -> AwaitingBytes:
        """Wait until the unread text has doubled. So repeated parsing of a long value takes linear time in total."""
        self._check_length(len(self._text))
        here = len(self._text) - self._position
        enough = min(here + max(here, _RETRY_CHARACTERS), MAX_VALUE_BYTES + 1)
        while len(self._text) - self._position < enough and not self._ended:
            yield None

    def _check_length(self, end: int) -> None:
        start = 0 if self._pinned else self._position
        if end - start > MAX_VALUE_BYTES:
            raise _unusable(too_long_error(self._line_at(start)))

    def _forget(self) -> None:
        if self._pinned:
            return
        self._count_to(self._position)
        self._text = self._text[self._position :]
        self._counted = self._position = 0

    def _count_to(self, position: int) -> int:
        self._line = self._line_at(position)
        self._counted = position
        return self._line

    def _line_at(self, position: int) -> int:
        return self._line + self._text.count("\n", self._counted, position)

    def _fail(self, why: str, position: int | None = None) -> NoReturn:
        at = ""
        if position is None:
            position = self._position
        else:
            column = position - self._text.rfind("\n", 0, position)
            at = f" at column {column}"
        line = self._line_at(position)
        raise _unusable(LineError(line, None, f"is not valid JSON ({why}{at})", "Fix the line.")) from None
