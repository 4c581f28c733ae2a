"""Splits the model's reasoning from its answer, wherever a file has put it.

A thought may stand in the content, marked with `<think>` and `</think>`; in a key beside the content; or in parts of
the content. If it stands in several places, they must agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lora_conversations.errors import BadValueError
from lora_conversations.examples import kind
from lora_conversations.tools import is_unset

REASONING = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks", "thought")
"""Keys of a message or a row for the model's reasoning before its answer."""
OPENING, CLOSING = "<think>", "</think>"
_TEXTS = ("thinking", "text", "reasoning", "summary", "content")
_BLOCKS = (*REASONING, "text", "reasoning.text", "reasoning.summary", "summary", "summary_text", "reasoning_text")
_ENCRYPTED = ("redacted_thinking", "reasoning.encrypted")
_READABLE = "Write the thought as a text, or remove it to train the answer alone."


def split_thought(content: str, key: str) -> tuple[str, str]:
    """Split a content into thought and answer.

    The thought is a block `<think>…</think>` at the beginning; the opening mark may be missing, as in the answers of
    models whose template has already written it. An opening mark elsewhere that is never closed is plain text.

    Raises:
        BadValueError: a block is not closed, stands in another place, or there are several. A chat template would cut
            the answer there.
    """
    opened, closed = content.count(OPENING), content.count(CLOSING)
    begins = content.lstrip().startswith(OPENING)
    if closed == 0 and not begins:
        return "", content
    if closed == 0:
        raise BadValueError(key, "opens <think> and never closes it", "Close the thought with </think>, or remove it.")
    if closed > 1 or opened > 1:
        raise BadValueError(key, "has several <think> marks", "Write one thought, before the answer.")
    if opened == 1 and not begins:
        raise BadValueError(key, "has a thought after its beginning", "Write the thought before the answer.")
    thought, answer = content.split(CLOSING)
    return trimmed(thought.replace(OPENING, "", 1)), answer.lstrip()


def trimmed(thought: str) -> str:
    """Return a thought without the line breaks around it, which chat templates write themselves."""
    return thought.strip("\r\n") if thought.strip() else ""


def read_thought(value: dict[str, Any], place: str, found: Iterable[tuple[str, str]] = ()) -> str:
    """Return the thought of an answer from its keys; `found` are those of its content, each with the name of its place.

    Raises:
        BadValueError: a key holds something else than text, or two places hold different thoughts.
    """
    thoughts = [(name, text) for name, text in found if text]
    if not thoughts and value.keys().isdisjoint(REASONING):
        return ""
    for name in REASONING:
        if not is_unset(value.get(name)):
            text = trimmed(_text_of(value[name], f"{place}.{name}" if place else name))
            thoughts += [(name, text)] if text else []
    if len({text for _, text in thoughts}) > 1:
        first, other = thoughts[0][0], next(name for name, text in thoughts if text != thoughts[0][1])
        where = "in its content" if first == other else f"in {first} and in {other}"
        raise BadValueError(place or None, f"has two different thoughts, {where}", "Keep one of them.")
    return thoughts[0][1] if thoughts else ""


def _text_of(value: Any, key: str) -> str:
    if isinstance(value, str):
        thought, rest = split_thought(value, key)
        if thought and rest:
            raise BadValueError(key, "goes on after </think>", "Write the answer into the content.")
        return thought or rest
    if isinstance(value, list):
        return "\n\n".join(block_text(block, f"{key}[{index}]") for index, block in enumerate(value))
    if isinstance(value, dict):
        return block_text(value, key)
    raise BadValueError(key, f"is {kind(value)}, not a text", _READABLE)


def block_text(block: Any, key: str) -> str:
    """Return the text of one block of reasoning, such as `{"type": "thinking", "thinking": "…"}`.

    Raises:
        BadValueError: the block is encrypted, or has no text.
    """
    if isinstance(block, str):
        return block
    if isinstance(block, dict):
        if block.get("type") in _ENCRYPTED:
            raise BadValueError(key, "is encrypted reasoning", _READABLE)
        if block.get("type", "text") not in _BLOCKS:
            raise BadValueError(f"{key}.type", "names no kind of reasoning", _READABLE)
        for name in _TEXTS:
            if isinstance(block.get(name), str):
                return str(block[name])
    raise BadValueError(key, f"is {kind(block)} without a thought's text", _READABLE)


def block_keys(block: dict[str, Any]) -> frozenset[str]:
    """Return the keys of a block of reasoning that are used."""
    return frozenset({"type", *[name for name in _TEXTS if isinstance(block.get(name), str)][:1]})
