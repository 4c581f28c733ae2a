"""Calls and results that a file has written into its texts, between `<tool_call>` and `<tool_response>` marks.

Files made for Hermes and Qwen have them. They are read as calls only in conversations with turns of tools, since these
answer them; elsewhere they stay text, as somebody wrote it for a base whose template knows no tools.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_conversations.errors import BadValueError
from lora_conversations.examples import ASSISTANT, TOOL, Turn
from lora_conversations.json_text import parse
from lora_conversations.tools import MAX_TOOLS, read_call

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_RESPONSE = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)
_CALL_MARK, _RESPONSE_MARK = "<tool_call>", "<tool_response>"


def read_marked_calls(turns: list[Turn]) -> list[Turn]:
    """Return the turns of a conversation with the calls and results that stand in their texts.

    Raises:
        BadValueError: a marked call is not valid, or text follows it.
    """
    return [found for turn in turns for found in _read(turn)]


def _read(turn: Turn) -> Iterator[Turn]:
    if turn.role == ASSISTANT and _CALL_MARK in turn.content and not turn.calls:
        yield _read_calls(turn)
    elif turn.role == TOOL and turn.content.lstrip().startswith(_RESPONSE_MARK):
        yield from _read_results(turn)
    else:
        yield turn


def _read_calls(turn: Turn) -> Turn:
    text, *rest = _CALL.split(turn.content)
    marked, between = rest[::2], rest[1::2]
    if not marked or "".join(between).strip():
        again = "Write the calls at the end of the answer, each between <tool_call> and </tool_call>."
        raise BadValueError(turn.key, "has text after the mark <tool_call>", again)
    if len(marked) > MAX_TOOLS:
        raise BadValueError(turn.key, f"holds more than {MAX_TOOLS} calls", "Split the turn or remove the example.")
    calls = tuple(read_call(parse(call, turn.key), turn.key) for call in marked)
    return turn._replace(content=text.rstrip(), calls=calls)


def _read_results(turn: Turn) -> Iterator[Turn]:
    """Yield a turn for each marked result; a turn with other text beside them stays as it is."""
    before, *rest = _RESPONSE.split(turn.content)
    if not rest or before.strip() or "".join(rest[1::2]).strip():
        yield turn
        return
    for result in rest[::2]:
        yield turn._replace(content=result.strip())
