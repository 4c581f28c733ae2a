"""Reads an answer of which a file holds two versions: as it was, and as somebody corrected it."""

from __future__ import annotations

from typing import NamedTuple

from lora_conversations.errors import BadValueError
from lora_conversations.examples import Turn
from lora_conversations.parts import read_content
from lora_conversations.tools import is_unset
from lora_conversations.turns import Value, answer_turn
from lora_conversations.verdicts import EDITS, ORIGINALS


class Edit(NamedTuple):
    """Two versions of an answer, of which somebody preferred the first."""

    better: Turn
    worse: Turn

    @property
    def is_unchanged(self) -> bool:
        """Tell whether both versions are the same."""
        better, worse = self
        return (better.content.strip(), better.thought) == (worse.content.strip(), worse.thought)


def has_edit_key(value: Value) -> bool:
    """Tell whether an object has a key for another version of its answer, also if it is null."""
    return any(name in value for name in (*EDITS, *ORIGINALS))


def read_edit(value: Value, place: str, answer: Turn) -> Edit | None:
    """Return both versions of an answer; None if the object has only one.

    With an original, the row's answer is the better one, unless it also has an edited answer.

    Raises:
        BadValueError: there are two different originals or edited answers, or the row's answer is a third one.
    """
    edited, original = _read_one(value, EDITS, place, answer), _read_one(value, ORIGINALS, place, answer)
    if edited is None and original is None:
        return None
    better, worse = edited or answer, original or answer
    texts = {better.content.strip(), worse.content.strip()}
    if edited and original and answer.content.strip() not in texts:
        raise BadValueError(
            answer.key, "is neither the original nor the edited answer beside it", "Remove one of the three."
        )
    return Edit(better, worse)


def _read_one(value: Value, names: tuple[str, ...], place: str, answer: Turn) -> Turn | None:
    """Read the version of the answer that stands under one of the names. It has the calls of the answer."""
    found: dict[str, Turn] = {}
    for name in names:
        if not is_unset(value.get(name)):
            key = f"{place}.{name}" if place else name
            version = answer_turn(key, key, read_content(value[name], key), answer.calls)
            found[name] = answer._replace(key=key, content=version.content, thought=version.thought)
    if len({(turn.content.strip(), turn.thought) for turn in found.values()}) > 1:
        raise BadValueError(place or None, f"has different answers in {' and '.join(found)}", "Keep one of them.")
    return next(iter(found.values()), None)
