"""Makes of a conversation what a method learns from: an example, pairs of answers, or answers with a thumb.

| the file has | sft | dpo | kto |
|---|---|---|---|
| answers | learns them | refuses | refuses |
| pairs, edited answers | learns the better one, with a note | learns from both | refuses pairs; an edit has its thumb |
| thumbs | refuses | refuses | learns from each |

Without a method, when a dataset is validated before anybody has chosen one, each row is taken as what it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from lora_conversations.edits import Edit, has_edit_key, read_edit
from lora_conversations.errors import BadValueError
from lora_conversations.examples import ASSISTANT, Draft, Example, Message, Repair, Turn, is_blank
from lora_conversations.ordering import Arranged, arrange, check_turn, empty_answer
from lora_conversations.preferences import Preference, Rating, Sample
from lora_conversations.tools import ToolList
from lora_conversations.turns import Value
from lora_conversations.verdicts import MARKS, THUMBS, has_clear_thumb, read_thumb

if TYPE_CHECKING:
    from lora_contract.hyperparameters import Method

MAX_VERDICTS = 200
"""The most edited or rated answers of one row: each becomes a sample with the whole conversation before it."""


class Remark(StrEnum):
    """What a method does with rows that were made for another one; the values are counted and shown to users."""

    BETTER_ONLY = "pairs of which only the better answer is learned: method dpo learns from both"
    SAME = "rows left out: both answers are the same, or nobody changed the answer"
    NO_THUMB = "rows left out: nobody pressed a thumb"
    EDITED = "answers with a thumb that were edited later: the one that was shown is learned, not the edited one"
    NO_TOOLS = "rows call tools and list none: the base never sees what the tools are"


class Learner:
    """Turns drafts into samples for one method, and counts repairs and remarks."""

    def __init__(self, method: Method | None, repairs: Counter[Repair]) -> None:
        self.method = method
        self.remarks: dict[Remark, list[int]] = {}
        """How often each remark applies, and the line where it does first."""
        self._repairs = repairs

    def remark(self, remark: Remark, line: int) -> None:
        """Count a remark."""
        self.remarks.setdefault(remark, [0, line])[0] += 1

    def samples(
        self, draft: Draft, row: Value, line: int, tools: ToolList | None = None, weight: float = 1.0
    ) -> list[Sample]:
        """Return what the method learns from a draft. `row` is the object that the draft was read from.

        Raises:
            BadValueError: the row is for another method, or its messages have no valid order.
        """
        # A list is built faster than a generator is exhausted, and this runs for every row of a file.
        is_marked = not row.keys().isdisjoint(MARKS) or [turn for turn in draft.turns if turn.marks]
        if draft.worse is not None:
            samples = self._from_pair(draft, draft.worse, line, weight)
        elif not is_marked and self.method in ("sft", None):
            samples = [_example(arrange(draft.system, draft.turns, self._repairs), draft, line, weight)]
        else:
            samples = self._from_conversation(draft, row, line, weight)
        if tools is not None:
            _check_calls(draft, tools)
            return [sample._replace(tools=tools.text) for sample in samples]
        if [turn for turn in draft.turns if turn.calls]:
            self.remark(Remark.NO_TOOLS, line)
        return samples

    def _from_pair(self, draft: Draft, worse: Sequence[Turn], line: int, weight: float) -> list[Sample]:
        if self.method == "kto":
            raise BadValueError(None, "is a pair of answers, not an answer with a thumb", "Train it with method dpo.")
        better = arrange(draft.system, draft.turns, self._repairs)
        if self.method == "sft":
            self.remark(Remark.BETTER_ONLY, line)
            return [_example(better, draft, line, weight)]
        other = arrange(draft.system, worse, Counter())
        end = len(better.messages) - 1
        if better.messages[:-1] != other.messages[:-1]:
            again = "Write the same turns before both answers, and one answer on each side."
            raise BadValueError(None, "has sides that differ before their last answers", again)
        if better.messages == other.messages:
            self.remark(Remark.SAME, line)
            return []
        return [_preference(better.messages, end, other.messages[end], draft, line)]

    def _from_conversation(self, draft: Draft, row: Value, line: int, weight: float) -> list[Sample]:
        last = next((turn for turn in reversed(draft.turns) if turn.role == ASSISTANT), None)
        marked = {turn.key: (turn.marks, turn.key) for turn in draft.turns if turn.marks and turn.learned}
        verdicts = _Verdicts(marked, row, last)
        if self.method == "kto" or (self.method is None and verdicts.clear_thumb()):
            return self._ratings(draft, verdicts, line)
        if self.method == "dpo" or (self.method is None and verdicts.has_edits()):
            return self._edited_pairs(draft, verdicts, line)
        if (thumb := verdicts.clear_thumb()) and not verdicts.has_edits():
            raise BadValueError(
                thumb, "is a thumb, not an answer to learn", "Train it with method kto, or remove the key."
            )
        edits = {turn.key: edit for turn in draft.turns if turn.learned and (edit := verdicts.edit(turn))}
        if any(not edit.is_unchanged for edit in edits.values()):
            self.remark(Remark.BETTER_ONLY, line)
        turns = [edits[turn.key].better if turn.key in edits else turn for turn in draft.turns]
        return [_example(arrange(draft.system, turns, self._repairs), draft, line, weight)]

    def _ratings(self, draft: Draft, verdicts: _Verdicts, line: int) -> list[Sample]:
        thumbs = {turn.key: thumb for turn in draft.turns if (thumb := verdicts.thumb(turn)) is not None}
        if not thumbs:
            if verdicts.has_thumb_key():
                self.remark(Remark.NO_THUMB, line)
                return []
            fitting = "dpo" if verdicts.has_edits() else "sft"
            again = f"Write label true or false, or rating up or down, or train it with method {fitting}."
            raise BadValueError(None, "has no thumb on an answer", again)
        # The thumb was given to the answer that was shown, before anybody corrected it.
        if any((edit := verdicts.edit(turn)) and not edit.is_unchanged for turn in draft.turns):
            self.remark(Remark.EDITED, line)
        shown = [edit.worse if (edit := verdicts.edit(turn)) else turn for turn in draft.turns]
        turns = [turn._replace(learned=old.key in thumbs) for turn, old in zip(shown, draft.turns, strict=True)]
        good = {turn.key: thumbs[old.key] for turn, old in zip(shown, draft.turns, strict=True) if old.key in thumbs}
        arranged = arrange(draft.system, turns, self._repairs)
        return [
            Rating(arranged.messages[: end + 1], good[answer.key], None, draft.conversation_id, line)
            for end, answer in _bounded(arranged)
        ]

    def _edited_pairs(self, draft: Draft, verdicts: _Verdicts, line: int) -> list[Sample]:
        if not verdicts.has_edits():
            fitting = "kto" if verdicts.has_thumb_key() else "sft"
            again = f"Write chosen and rejected, or an edited answer, or train it with method {fitting}."
            raise BadValueError(None, "has no second answer that is worse", again)
        edits = {edit.better.key: edit for turn in draft.turns if (edit := verdicts.edit(turn))}
        changed = {key for key, edit in edits.items() if not edit.is_unchanged}
        if not changed:
            self.remark(Remark.SAME, line)
            return []
        better = [edit.better if (edit := verdicts.edit(turn)) else turn for turn in draft.turns]
        arranged = arrange(draft.system, [turn._replace(learned=turn.key in changed) for turn in better], self._repairs)
        return [
            _preference(arranged.messages, end, _answer(edits[answer.key].worse), draft, line)
            for end, answer in _bounded(arranged)
        ]


class _Verdicts:
    """The thumbs and edits of a conversation's answers. Those of the row belong to its last answer."""

    def __init__(self, marked: dict[str, tuple[Value, str]], row: Value, last: Turn | None) -> None:
        self._marked = marked
        self._row = row if any(name in row for name in THUMBS) or has_edit_key(row) else {}
        self._last = None if last is None else last.key

    def _places(self, turn: Turn) -> list[tuple[Value, str]]:
        if turn.role != ASSISTANT or not turn.learned:
            return []
        own = [self._marked[turn.key]] if turn.key in self._marked else []
        return [*own, (self._row, "")] if self._row and turn.key == self._last else own

    def _all(self) -> Iterator[tuple[Value, str]]:
        yield (self._row, "")
        yield from self._marked.values()

    def clear_thumb(self) -> str | None:
        """Return the key of the first value that can only be a thumb, else None."""
        for value, place in self._all():
            if name := has_clear_thumb(value):
                return f"{place}.{name}" if place else name
        return None

    def has_thumb_key(self) -> bool:
        return any(name in value for value, _ in self._all() for name in THUMBS)

    def has_edits(self) -> bool:
        return any(has_edit_key(value) for value, _ in self._all())

    def thumb(self, turn: Turn) -> bool | None:
        """Return the thumb of an answer.

        Raises:
            BadValueError: the row and its last answer contradict each other, or a value is no thumb.
        """
        found = [thumb for place in self._places(turn) if (thumb := read_thumb(*place)) is not None]
        if len(set(found)) > 1:
            raise BadValueError(turn.key, "has another thumb than its row", "Keep one of them.")
        return found[0] if found else None

    def edit(self, turn: Turn) -> Edit | None:
        """Return the two versions of an answer, if there are two.

        Raises:
            BadValueError: see `read_edit`; or both the row and its last answer have other versions.
        """
        found = [edit for value, place in self._places(turn) if (edit := read_edit(value, place, turn))]
        if len(found) > 1:
            raise BadValueError(turn.key, "has other versions, and so has its row", "Keep those of one place.")
        return found[0] if found else None


def _check_calls(draft: Draft, tools: ToolList) -> None:
    """Refuse a call of a tool that a row does not list, though it lists some: the model would learn to invent tools."""
    for turn in (*draft.turns, *(draft.worse or ())):
        if any(call.name not in tools.names for call in turn.calls):
            again = "Add the tool to the list, or remove the example."
            raise BadValueError(turn.key, "calls a tool that the row does not list", again)


def _example(arranged: Arranged, draft: Draft, line: int, weight: float) -> Example:
    weights = tuple([turn.weight * weight for turn in arranged.answers])
    if weights.count(1.0) == len(weights):
        weights = ()
    return Example(arranged.messages, arranged.learned, draft.conversation_id, line, None, weights)


def _preference(messages: tuple[Message, ...], end: int, worse: Message, draft: Draft, line: int) -> Preference:
    return Preference(messages[:end], (messages[end],), (worse,), None, draft.conversation_id, line)


def _answer(turn: Turn) -> Message:
    """Make the message of a worse answer, which was not brought into order with the others."""
    check_turn(turn)
    if is_blank(turn.content) and not turn.calls:
        raise empty_answer(turn)
    return Message(ASSISTANT, turn.content, turn.thought, turn.calls)


def _bounded(arranged: Arranged) -> list[tuple[int, Turn]]:
    """Pair the index of each learned message with its turn."""
    if len(arranged.learned) > MAX_VERDICTS:
        again = "Split the conversation into several examples."
        raise BadValueError(None, f"has more than {MAX_VERDICTS} answers with a thumb or an edit", again)
    return list(zip(arranged.learned, arranged.answers, strict=True))
