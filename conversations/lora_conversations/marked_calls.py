"""Calls and results that a file has written into its texts, between `<tool_call>` and `<tool_response>` marks.

Files made for Hermes and Qwen have them. They are read as calls only in conversations with turns of tools, since these
answer them; elsewhere they stay text, as somebody wrote it for a base whose template knows no tools.
"""

from __future__ import annotations

from collections.abc import Iterator

from lora_conversations.errors import BadValueError
from lora_conversations.examples import ASSISTANT, TOOL, Turn
from lora_conversations.json_text import parse
from lora_conversations.tools import MAX_TOOLS, read_call

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_RESPONSE, _RESPONSE_END = "<tool_response>", "</tool_response>"


def read_marked_calls(turns: list[Turn]) -> list[Turn]:
    """Return the turns of a conversation with the calls and results that stand in their texts.

    Raises:
        BadValueError: a marked call is not valid, or text follows it.
    """
    return [found for turn in turns for found in _read(turn)]


def _read(turn: Turn) -> Iterator[Turn]:
    if turn.role == ASSISTANT and _CALL in turn.content and not turn.calls:
        yield _read_calls(turn)
    elif turn.role == TOOL and turn.content.lstrip().startswith(_RESPONSE):
        results = _marked(turn.content, _RESPONSE, _RESPONSE_END)
        yield from [turn] if results is None else (turn._replace(content=result.strip()) for result in results)
    else:
        yield turn


def _read_calls(turn: Turn) -> Turn:
    begin = turn.content.index(_CALL)
    marked = _marked(turn.content[begin:], _CALL, _CALL_END)
    if marked is None:
        again = "Write the calls at the end of the answer, each between <tool_call> and </tool_call>."
        raise BadValueError(turn.key, "has text after the mark <tool_call>", again)
    if len(marked) > MAX_TOOLS:
        raise BadValueError(turn.key, f"holds more than {MAX_TOOLS} calls", "Split the turn or remove the example.")
    calls = tuple(read_call(parse(call, turn.key), turn.key) for call in marked)
    return turn._replace(content=turn.content[:begin].rstrip(), calls=calls)


def _marked(text: str, begin: str, end: str) -> list[str] | None:
    """Return what stands between marks; None if anything stands outside of them. Takes linear time, unlike a regex."""
    before, *pieces = text.split(begin)
    found = [piece.partition(end) for piece in pieces]
    if before.strip() or any(not mark or after.strip() for _, mark, after in found):
        return None
    return [inside for inside, _, _ in found]
