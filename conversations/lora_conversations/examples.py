"""The parts of a dataset: messages, training examples, and errors of a line.

An example is a conversation that ends with an answer of the assistant, and marks which of its answers are learned.
`arrange` holds the rules for the order of messages, for all formats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple
from unicodedata import category

from lora_contract.words import counted
from lora_conversations.errors import BadValueError

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"

_ALIASES = {
    SYSTEM: ("system", "developer"),
    USER: ("user", "human"),
    ASSISTANT: ("assistant", "gpt", "bot", "model"),
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
        return any(message.thought for message in self.messages)


def uses_tools(messages: Iterable[Message], tools: str | None) -> bool:
    """Tell whether there are schemas of tools, calls, or results of tools."""
    return tools is not None or any(message.calls or message.role == TOOL for message in messages)


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
    """One message as it stands in the file. `key` is its path; `learned` says whether its tokens shall be learned."""

    key: str
    role: str
    content: str
    learned: bool


class Draft(NamedTuple):
    """A conversation as it stands in the file, before `arrange`. `unwanted`: the file says to learn none of it."""

    system: tuple[str, ...]
    turns: list[Turn]
    conversation_id: str | None
    unwanted: bool = False


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


def arrange(draft: Draft, repairs: Counter[Repair]) -> tuple[tuple[Message, ...], tuple[int, ...]]:
    """Bring the messages into an order that every chat template accepts; returns them and the indices of learned ones.

    `repairs` counts the changes that were needed.

    Raises:
        BadValueError: no such order is possible without changing what is learned, or a text is not valid.
    """
    arranged = _Arranged(draft.system, repairs)
    for turn in draft.turns:
        arranged.add(turn)
    return arranged.finish()


class _Arranged:
    def __init__(self, systems: Sequence[str], repairs: Counter[Repair]) -> None:
        self._repairs = repairs
        self._messages: list[Message] = []
        self._trained: list[int] = []
        self._begun = False
        for text in systems:
            self.add(Turn("system prompt", SYSTEM, text, learned=False))

    def add(self, turn: Turn) -> None:
        if not turn.content.isascii():
            _check_characters(turn.content, turn.key)
        if is_blank(turn.content):
            if turn.learned:
                is_empty = not turn.content or turn.content.isspace()
                what = "is an empty answer" if is_empty else "is an answer without a visible character"
                raise BadValueError(turn.key, what, "Write the answer or remove the example.")
            self._repairs[Repair.BLANK_TURN] += turn.role != SYSTEM
        elif turn.role == SYSTEM:
            self._add_system(turn)
        elif turn.role == USER:
            self._add_user(turn)
        else:
            self._add_answer(turn)
        self._begun = self._begun or turn.role != SYSTEM

    def _add_system(self, turn: Turn) -> None:
        if self._begun:
            raise BadValueError(
                turn.key,
                "is a system message after the first place",
                "Put one system message first, or make it part of the user's turn.",
            )
        if not self._messages:
            self._messages.append(Message(SYSTEM, turn.content))
        elif self._messages[0].content.strip() != turn.content.strip():
            self._join(turn)

    def _add_user(self, turn: Turn) -> None:
        last = self._messages[-1] if self._messages else None
        if last is None or last.role != USER:
            self._messages.append(Message(USER, turn.content))
        elif last.content.strip() == turn.content.strip():
            self._repairs[Repair.DOUBLED_USER_TURN] += 1
        else:
            self._join(turn)

    def _add_answer(self, turn: Turn) -> None:
        last_role = self._messages[-1].role if self._messages else None
        if last_role == USER:
            if turn.learned:
                self._trained.append(len(self._messages))
            self._messages.append(Message(ASSISTANT, turn.content))
        elif last_role != ASSISTANT:
            # Many chat templates raise an error if the assistant's turn comes first.
            self._repairs[Repair.OPENING_ANSWER] += 1
        elif turn.learned or (self._trained and self._trained[-1] == len(self._messages) - 1):
            raise BadValueError(
                turn.key,
                "is an answer directly after another answer",
                "Join the two answers, or put the user's turn between them.",
            )
        else:
            self._join(turn)

    def _join(self, turn: Turn) -> None:
        self._repairs[Repair.JOINED_TURN] += 1
        self._messages[-1] = Message(turn.role, f"{self._messages[-1].content}\n\n{turn.content}")

    def finish(self) -> tuple[tuple[Message, ...], tuple[int, ...]]:
        if not self._trained:
            raise BadValueError(
                None,
                "holds no answer to a user's turn",
                "Each example needs a user's turn and the assistant's answer to it.",
            )
        end = self._trained[-1] + 1
        if end < len(self._messages):
            self._repairs[Repair.TRAILING_TURN] += len(self._messages) - end
        return tuple(self._messages[:end]), tuple(self._trained)


def _check_characters(content: str, key: str) -> None:
    try:
        content.encode()
    except UnicodeEncodeError:
        raise BadValueError(
            key,
            "holds half of a two-part character (a lone surrogate escape)",
            "Write the file again with whole characters: cut texts between characters.",
        ) from None
