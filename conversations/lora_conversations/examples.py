"""The parts of a dataset: messages, training examples, and conversations as they stand in the file.

An example is a conversation that ends with an answer of the assistant, and marks which of its answers are learned.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, NamedTuple
from unicodedata import category

from lora_contract.words import counted

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"

_ALIASES = {
    SYSTEM: ("system", "developer"),
    USER: ("user", "human"),
    ASSISTANT: ("assistant", "gpt", "bot", "model"),
    TOOL: ("tool", "function", "observation", "function_response", "tool_response", "tool_result", "ipython"),
}
ROLES: dict[str, str] = {
    spelling: role
    for role, aliases in _ALIASES.items()
    for alias in aliases
    for spelling in (alias, alias.capitalize(), alias.upper())
}
"""Every accepted spelling of a role, and the role that it means."""

_UNSEEN_CATEGORIES = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Characters that Unicode counts as letters or signs but that show nothing: Hangul and Khmer fillers, blank Braille."""


class ToolCall(NamedTuple):
    """One call of a tool in an answer.

    `arguments` is a JSON object as text, with the separators that `json.dumps` gives, non-ASCII characters as they are,
    and the keys in the file's order. So an answer has the same text whichever spelling the file used.
    """

    name: str
    arguments: str
    call_id: str | None = None


class Message(NamedTuple):
    """One turn. `role` is system, user, assistant or tool.

    `content` is empty beside `calls` where the file has null. `thought` is the reasoning before an answer, without the
    marks around it. `name` is the tool whose result this is, or who speaks; `call_id` is the call that a tool's result
    answers.
    """

    role: str
    content: str
    thought: str = ""
    calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    call_id: str | None = None


class Example(NamedTuple):
    """One training example: perhaps a system message, then turns of user, assistant and tools, an answer last.

    `trained` holds the indices of the messages whose tokens are learned; the others are context. `line` is where the
    example begins in the file, from 1. `opening` is set if the example's conversation began earlier than the example
    does: then it is the digest of that beginning (see `lora_conversations.identity`). `weights` has a number above 0
    and up to 1 for each index in `trained`; it is empty if all are 1. `tools` is a JSON list of the tools' schemas
    (`{"type": "function", "function": {…}}`) as text, spelt like `ToolCall.arguments`.
    """

    messages: tuple[Message, ...]
    trained: tuple[int, ...]
    conversation_id: str | None
    line: int
    opening: str | None = None
    weights: tuple[float, ...] = ()
    tools: str | None = None

    @property
    def has_tools(self) -> bool:
        """Tell whether the example can only be rendered by a template that knows tools."""
        return uses_tools(self.messages, self.tools)

    @property
    def has_thoughts(self) -> bool:
        """Tell whether an answer of the example has reasoning before it."""
        return bool([message for message in self.messages if message.thought])


def uses_tools(messages: Iterable[Message], tools: str | None) -> bool:
    """Tell whether there are schemas of tools, calls, or results of tools."""
    # A list is built faster than a generator is exhausted, and this runs for every example of a file.
    return tools is not None or bool([message for message in messages if message.calls or message.role == TOOL])


def call_texts(message: Message) -> tuple[str, ...]:
    """Return the names and arguments of a message's calls."""
    return tuple(text for call in message.calls for text in (call.name, call.arguments)) if message.calls else ()


def texts_of(message: Message) -> tuple[str, ...]:
    """Return all texts of a message that a chat template may write: content, thought, names and arguments."""
    if not (message.thought or message.calls or message.name):
        return (message.content,)
    return (message.content, message.thought, *call_texts(message), *filter(None, (message.name,)))


class Repair(StrEnum):
    """Changes that the reader makes to an example so that it can be used; the values are counted and shown to users.

    They change no answer that is learned. One exception: an answer before the first user turn is dropped.
    """

    TRAILING_COMMA = "commas after examples dropped"
    DOUBLED_USER_TURN = "doubled user turns dropped"
    BLANK_TURN = "blank turns dropped"
    JOINED_TURN = "consecutive turns of one role joined"
    OPENING_ANSWER = "answers before the first user turn dropped"
    TRAILING_TURN = "turns after the last answer dropped"


class Turn(NamedTuple):
    """One message as it stands in the file.

    `key` is its path; `learned` says whether its tokens shall be learned, and `weight` (above 0, up to 1) how much.
    `marks` is the object of the file that holds a thumb or another version of this answer, if there is one.
    """

    key: str
    role: str
    content: str
    learned: bool
    weight: float = 1.0
    thought: str = ""
    calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    call_id: str | None = None
    marks: dict[str, Any] | None = None


class Draft(NamedTuple):
    """A conversation as it stands in the file, before its messages are brought into order.

    `unwanted`: the file says to learn none of it. `worse` is the conversation with the worse answer, if it is a pair.
    """

    system: tuple[str, ...]
    turns: list[Turn]
    conversation_id: str | None
    unwanted: bool = False
    worse: list[Turn] | None = None


def is_blank(text: str) -> bool:
    """Tell whether a text has no visible character."""
    if text and text[0].isalnum():
        return False
    return not any(character not in _UNSEEN and category(character) not in _UNSEEN_CATEGORIES for character in text)


def kind(value: object) -> str:
    """Describe the type of a JSON value in words, without its content."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return f"a text of {counted(len(value), 'character')}" if value else "an empty text"
        case list():
            return f"a list of {counted(len(value), 'element')}" if value else "an empty list"
        case _:
            return "an object"
