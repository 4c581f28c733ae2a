"""Reads the values of a JSON file: examples as the reader of datasets knows them, chat exports, and single messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lora_conversations.documents import Frame, OuterKeys
from lora_conversations.errors import LineError
from lora_conversations.examples import Repair
from lora_conversations.formats import is_turn
from lora_conversations.framing import Framer
from lora_worker.conversion.chat_exports import UnusableChatError, is_chatgpt, is_claude, read_chatgpt, read_claude
from lora_worker.conversion.tally import Tally

_CHUNK_BYTES = 1 << 20
_MOST_TURNS = 10_000
"""The most single messages that are read as one conversation; no model reads more."""


class Piece(NamedTuple):
    """A value of the file, where it begins (a line, from 1), and its path in the document."""

    line: int
    value: Any
    key: str = ""


def read_document(path: Path, repairs: Counter[Repair], tally: Tally) -> Iterator[Piece | LineError]:
    """Yield the values of a JSON file or of JSON Lines; conversations of chat exports as objects with `messages`.

    A list whose elements are messages is one conversation.

    Raises:
        DatasetUnusableError: the file is no JSON, or breaks off.
        OSError: it can't be read.
    """
    turns: list[Piece] = []
    for frame in _frames(path, repairs):
        if isinstance(frame, Frame) and is_turn(frame.value) and not _holds_turns(frame.value):
            if len(turns) < _MOST_TURNS:
                turns.append(Piece(frame.line, frame.value))
            else:
                tally.add("a single message beyond the first thousands of its list", frame.line)
            continue
        yield from _joined(turns)
        turns = []
        yield from _opened(frame, tally)
    yield from _joined(turns)


def _holds_turns(value: dict[str, Any]) -> bool:
    return any(isinstance(value.get(key), list) for key in ("messages", "conversations", "turns"))


def _joined(turns: list[Piece]) -> Iterator[Piece]:
    if turns:
        yield Piece(turns[0].line, [turn.value for turn in turns])


def _frames(path: Path, repairs: Counter[Repair]) -> Iterator[Frame | LineError]:
    framer = Framer(repairs)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield from framer.feed(chunk)
    yield from framer.close()


def _opened(frame: Frame | LineError, tally: Tally) -> Iterator[Piece | LineError]:
    if isinstance(frame, LineError):
        yield frame
    elif frame.doubled is not None:
        yield LineError(frame.line, None, "has a key twice", "Keep one of the two.")
    elif isinstance(frame.value, OuterKeys):
        # The keys of an object around the list of examples.
        yield Piece(frame.line, frame.value, frame.key)
    elif is_chatgpt(frame.value) or is_claude(frame.value):
        read = read_chatgpt if is_chatgpt(frame.value) else read_claude
        try:
            yield Piece(frame.line, read(frame.value, lambda what, count: tally.add(what, frame.line, count)))
        except UnusableChatError as error:
            tally.add(f"a conversation of the export: {error}", frame.line)
    else:
        yield Piece(frame.line, frame.value, frame.key)
