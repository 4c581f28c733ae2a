"""Reads what people thought of an answer: a thumb up or down, or their own version of it.

A thumb stands in `label`, `thumb`, `thumbs`, `rating`, `vote`, `liked`, `reaction` or `feedback` of a row or an answer:
true or false, 1 or -1, up or down, good or bad.

| it has | better answer | worse answer |
|---|---|---|
| `original_…` or `rejected_response` | the answer | the original |
| `edited_…` | the edited one | the answer |
| both | the edited one | the original; the answer must be one of them |
"""

from __future__ import annotations

from typing import Any

from lora_conversations.errors import BadValueError
from lora_conversations.examples import kind

THUMBS = ("label", "thumb", "thumbs", "rating", "feedback", "vote", "liked", "reaction")
"""Keys for a thumb. `feedback` may also be an object that holds one of the others."""
_NOUNS = ("answer", "response", "output", "completion", "content")
EDITS = tuple(f"edited_{noun}" for noun in _NOUNS)
"""Keys for an answer as somebody corrected it."""
ORIGINALS = (*(f"original_{noun}" for noun in _NOUNS), "rejected_response")
"""Keys for the answer that was there before somebody corrected it."""
MARKS = frozenset({*THUMBS, *EDITS, *ORIGINALS})

_CLEARLY_UP = frozenset({"up", "+1", "thumbs up", "thumb up", "thumbsup", "👍", "like", "liked", "upvote", "upvoted"})
_CLEARLY_DOWN = frozenset(
    {"down", "-1", "thumbs down", "thumb down", "thumbsdown", "👎", "dislike", "disliked", "downvote", "downvoted"}
)
_UP = _CLEARLY_UP | {"1", "1.0", "good", "yes", "positive", "true"}
_DOWN = _CLEARLY_DOWN | {"-1.0", "bad", "no", "negative", "false"}
_WRITE = "Write true or false, up or down, or 1 or -1."


def clear_thumb(value: object) -> bool | None:
    """Return a thumb that can mean nothing else (true, “up”, -1); None for all other values.

    A number may be a class or a number of stars, and a word such as “positive” the label of a class; only a method that
    learns from thumbs may read them as thumbs.
    """
    if isinstance(value, bool):
        return value
    word = _word(value)
    return True if word in _CLEARLY_UP else False if word in _CLEARLY_DOWN else None


def _word(value: object) -> str:
    return str(value).strip().lower().replace("_", " ") if isinstance(value, str | int | float) else ""


def has_clear_thumb(value: dict[str, Any]) -> str | None:
    """Return the first key of an object whose value can only be a thumb, else None."""
    return next((name for name in THUMBS if name in value and clear_thumb(value[name]) is not None), None)


def read_thumb(value: dict[str, Any], place: str) -> bool | None:
    """Return the thumb of a row or an answer: true is up; None if there is no key of one, or it is null.

    Raises:
        BadValueError: a key holds something else, or two keys contradict each other.
    """
    found = {}
    for name in THUMBS:
        raw = value.get(name)
        if raw is None or raw == "":
            continue
        key = f"{place}.{name}" if place else name
        thumb = read_thumb(raw, key) if name == "feedback" and isinstance(raw, dict) else _read(raw, name, key)
        if thumb is not None:
            found[name] = thumb
    if len(set(found.values())) > 1:
        raise BadValueError(place or None, f"has a thumb up and a thumb down, in {' and '.join(found)}", "Keep one.")
    return next(iter(found.values()), None)


def _read(raw: Any, name: str, key: str) -> bool:
    word = _word(raw)
    thumb = True if word in _UP else False if word in _DOWN else None
    # TRL writes the labels of KTO as 1 and 0. In a rating, 0 may as well mean that nobody pressed a thumb.
    if name == "label" and word in ("0", "0.0"):
        thumb = False
    if thumb is None:
        raise BadValueError(key, f"is {kind(raw)} that is neither a thumb up nor down", _WRITE)
    return thumb
