"""Brings the messages of a conversation into an order that chat templates accept; all formats have the same rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from lora_conversations.errors import BadValueError
from lora_conversations.examples import ASSISTANT, SYSTEM, TOOL, USER, Message, Repair, ToolCall, Turn, is_blank
from lora_conversations.tools import MAX_TOOLS, check_call_ids


class Arranged(NamedTuple):
    """Messages in order; `learned` are the indices of those that are learned, `answers` the turns that they were."""

    messages: tuple[Message, ...]
    learned: tuple[int, ...]
    answers: tuple[Turn, ...]


def arrange(systems: Sequence[str], turns: Sequence[Turn], repairs: Counter[Repair]) -> Arranged:
    """Bring turns into order: perhaps a system message, then user, answers, and results of tools after their calls.

    `repairs` counts the changes that were needed.

    Raises:
        BadValueError: no such order is possible without changing what is learned, or a text is not valid.
    """
    arranging = _Arranging(repairs)
    for text in systems:
        arranging.add(Turn("system prompt", SYSTEM, text, learned=False))
    for turn in turns:
        arranging.add(turn)
    return arranging.finish()


class _Arranging:
    def __init__(self, repairs: Counter[Repair]) -> None:
        self._repairs = repairs
        self._messages: list[Message] = []
        self._trained: list[int] = []
        self._answers: list[Turn] = []
        self._begun = False
        self._open: list[ToolCall] = []
        """The calls of the last answer that have no result yet."""
        self._dropped_answer = False
        """Whether the last answer was dropped, because no question came before it."""

    def add(self, turn: Turn) -> None:
        if not turn.content.isascii() or turn.thought or turn.calls or turn.name:
            check_turn(turn)
        if turn.role == TOOL:
            self._add_result(turn)
        elif is_blank(turn.content) and not turn.calls:
            if turn.learned:
                raise empty_answer(turn)
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
        self._check_results(turn)
        last = self._messages[-1] if self._messages else None
        if last is None or last.role != USER:
            self._messages.append(Message(USER, turn.content))
        elif last.content.strip() == turn.content.strip():
            self._repairs[Repair.DOUBLED_USER_TURN] += 1
        else:
            self._join(turn)
        self._dropped_answer = False

    def _check_results(self, turn: Turn) -> None:
        """Refuse a turn that follows a call without its result: what comes after it would answer nothing."""
        if self._open and not self._dropped_answer:
            raise BadValueError(
                turn.key,
                "follows a call that has no result",
                "Write the result of each call as a turn with the role tool, or remove the example.",
            )
        self._open = []

    def _add_answer(self, turn: Turn) -> None:
        last_role = self._messages[-1].role if self._messages else None
        if last_role == ASSISTANT:
            self._add_to_answer(turn)
            return
        if last_role not in (USER, TOOL):
            # Many chat templates raise an error if the assistant's turn comes first.
            self._repairs[Repair.OPENING_ANSWER] += 1
            self._dropped_answer = True
        else:
            self._check_results(turn)
            if turn.learned:
                self._trained.append(len(self._messages))
                self._answers.append(turn)
            self._messages.append(Message(ASSISTANT, turn.content, turn.thought, turn.calls))
        self._open = list(turn.calls)

    def _add_to_answer(self, turn: Turn) -> None:
        """Join an answer with the one directly before it: two that are not learned, or a text and calls."""
        last = self._messages[-1]
        is_last_learned = bool(self._trained) and self._trained[-1] == len(self._messages) - 1
        is_alike = is_last_learned == turn.learned and (not turn.learned or self._answers[-1].weight == turn.weight)
        if turn.calls and is_alike and not (last.thought and turn.thought):
            self._join_calls(turn)
            return
        self._check_results(turn)
        if turn.learned or is_last_learned:
            raise BadValueError(
                turn.key,
                "is an answer directly after another answer",
                "Join the two answers, or put the user's turn between them.",
            )
        self._join(turn)

    def _join_calls(self, turn: Turn) -> None:
        last = self._messages[-1]
        calls = (*last.calls, *turn.calls)
        if len(calls) > MAX_TOOLS:
            raise BadValueError(turn.key, f"is the call after {MAX_TOOLS} others", "Remove the example.")
        check_call_ids(calls, turn.key)
        content = "\n\n".join(filter(None, (last.content, turn.content)))
        self._messages[-1] = last._replace(content=content, thought=last.thought or turn.thought, calls=calls)
        self._open += turn.calls
        self._repairs[Repair.JOINED_TURN] += 1

    def _join(self, turn: Turn) -> None:
        self._repairs[Repair.JOINED_TURN] += 1
        last = self._messages[-1]
        thought = "\n\n".join(filter(None, (last.thought, turn.thought)))
        self._messages[-1] = last._replace(content=f"{last.content}\n\n{turn.content}", thought=thought)

    def _add_result(self, turn: Turn) -> None:
        call = _call_of(turn, self._open)
        if call is None:
            if self._dropped_answer:
                return
            if not self._open:
                again = "Put the answer with the call before it, or remove the example."
                raise BadValueError(turn.key, "is a tool's result without a call before it", again)
            again = "Give it the id or the name of one of the calls."
            raise BadValueError(turn.key, "answers a call that the answer before it doesn't make", again)
        self._open.remove(call)
        if self._dropped_answer:
            return
        name, call_id = turn.name or call.name, turn.call_id or call.call_id
        self._messages.append(Message(TOOL, turn.content, name=name, call_id=call_id))

    def finish(self) -> Arranged:
        if not self._trained:
            raise BadValueError(
                None,
                "holds no answer to a user's turn",
                "Each example needs a user's turn and the assistant's answer to it.",
            )
        end = self._trained[-1] + 1
        if end < len(self._messages):
            self._repairs[Repair.TRAILING_TURN] += len(self._messages) - end
        return Arranged(tuple(self._messages[:end]), tuple(self._trained), tuple(self._answers))


def _call_of(turn: Turn, calls: Sequence[ToolCall]) -> ToolCall | None:
    """Find the call that a result answers: by its id, else by its name, else the first of those that are open."""
    if turn.call_id is not None and any(call.call_id is not None for call in calls):
        return next((call for call in calls if call.call_id == turn.call_id), None)
    if turn.name is not None:
        return next((call for call in calls if call.name == turn.name), None)
    return calls[0] if calls else None


def check_turn(turn: Turn) -> None:
    """Refuse a turn whose texts can't be written as UTF-8.

    Raises:
        BadValueError: a text holds half of a character.
    """
    if not turn.content.isascii():
        _check_characters(turn.content, turn.key)
    if turn.thought or turn.calls or turn.name or turn.call_id:
        for text in (turn.thought, turn.name, turn.call_id, *(text for call in turn.calls for text in call)):
            _check_characters(text or "", turn.key)


def empty_answer(turn: Turn) -> BadValueError:
    """Make the error for an answer that has no visible character."""
    is_empty = not turn.content or turn.content.isspace()
    what = "is an empty answer" if is_empty else "is an answer without a visible character"
    return BadValueError(turn.key, what, "Write the answer or remove the example.")


def _check_characters(content: str, key: str) -> None:
    try:
        content.encode()
    except UnicodeEncodeError:
        raise BadValueError(
            key,
            "holds half of a two-part character (a lone surrogate escape)",
            "Write the file again with whole characters: cut texts between characters.",
        ) from None
