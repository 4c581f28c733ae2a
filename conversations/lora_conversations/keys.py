"""Counts keys of a dataset's rows that the reader does not use, so that the user learns what was ignored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lora_contract.words import counted
from lora_conversations.examples import ASSISTANT, ROLES
from lora_conversations.formats import ADDITIONS, ANSWERS, QUESTIONS, SYSTEM_KEYS, Format, is_turn, speakable
from lora_conversations.turns import FLAGS, TOOL_LISTS, Value, as_object, is_empty

_NAMES_KEPT = 200
_NAMES_SPOKEN = 10

ANY_ROW = frozenset({"id", "conversation_id", "metadata", *SYSTEM_KEYS, *FLAGS, *TOOL_LISTS})
"""Keys that a row of any format may have."""
# What the application writes about its own pairs. None of it is for training, so it is no reason for a note.
_BRIGHTRUN = {"turn_number", "conversation_metadata", "emotional_context", "training_metadata"}
ROW_KEYS: dict[Format, frozenset[str]] = {
    "brightrun": frozenset({"conversation_history", "current_user_input", "target_response", *_BRIGHTRUN, *ANY_ROW}),
    "brightrun_v3": frozenset({"training_pairs", "conversation_metadata", *ANY_ROW}),
    "openai_messages": frozenset({"messages", *ANY_ROW}),
    "turns": frozenset({"turns", *ANY_ROW}),
    "sharegpt": frozenset({"conversations", *ANY_ROW}),
    "gemini": frozenset({"contents", "systemInstruction", "system_instruction", *ANY_ROW}),
    "alpaca": frozenset({"instruction", "output", "history", *ADDITIONS, *ANY_ROW}),
    "prompt_completion": frozenset({"prompt", "completion", *ANY_ROW}),
    "question_answer": frozenset({"history", *QUESTIONS, *ANSWERS, *ADDITIONS, *ANY_ROW}),
}
_TURN_LISTS: dict[Format, tuple[str, ...]] = {
    "brightrun": ("conversation_history",),
    "openai_messages": ("messages",),
    "turns": ("turns",),
    "sharegpt": ("conversations",),
    "gemini": ("contents",),
    "prompt_completion": ("prompt", "completion"),
}
_ANY_TURN = frozenset({"role", "content", *FLAGS})
TURN_KEYS: dict[Format, frozenset[str]] = {
    "brightrun": _ANY_TURN | {"turn", "emotional_state"},
    "sharegpt": _ANY_TURN | {"from", "value"},
    "gemini": _ANY_TURN - {"content"} | {"parts"},
}
_CONTENTS = frozenset({*SYSTEM_KEYS, *QUESTIONS, *ANSWERS, *ADDITIONS, "current_user_input", "target_response"})
"""Keys of a row whose value may be a list of content parts, such as `[{"type": "text", "text": "…"}]`."""
_PART_KEYS = frozenset({"type", "text"})
V3_PAIR_KEYS = frozenset(
    {
        "turn_number",
        "turn_id",
        "user_input",
        "internal_deliberation",
        "synthesized_output",
        "training_metadata",
        *FLAGS,
    }
)
_V3_PAIR_PREFIX = "purpose_state_"
OUTER_KEYS = frozenset({"training_file_metadata", "dataset_metadata", "consultant_profile", "conversation_metadata"})
"""Keys that the application writes beside the list of conversations in a complete file."""


@dataclass(frozen=True, slots=True)
class UnusedKey:
    """A key that is not used: its path in a row, how often it occurs, and the line where it occurs first."""

    name: str
    count: int
    line: int


class UnusedKeys:
    """Counts keys that are not used, in bounded memory. Keys with an empty value are not counted."""

    def __init__(self) -> None:
        self._found: dict[str, list[int]] = {}

    def look(self, form: Format, value: Value, line: int) -> None:
        """Count the unused keys of a row of the format `form`, and of the turns and parts in it."""
        if not value.keys() <= ROW_KEYS[form]:
            self.count(value, ROW_KEYS[form], line)
        turn_lists = _TURN_LISTS.get(form, ())
        for name, items in value.items():
            if not isinstance(items, list):
                continue
            if name in turn_lists and items and is_turn(items[0]):
                self.look_at_turns(items, name, line, TURN_KEYS.get(form, _ANY_TURN))
            elif name in _CONTENTS:
                self._look_at_parts(items, name, line)
        if form == "brightrun_v3":
            for pair in value["training_pairs"]:
                known = V3_PAIR_KEYS | {key for key in pair if key.startswith(_V3_PAIR_PREFIX)}
                self.count(pair, known, line, "training_pairs[].")

    def look_at_turns(self, items: list[Any], name: str, line: int, known: frozenset[str] = _ANY_TURN) -> None:
        """Count the unused keys of a list of turns, and of the parts of their contents."""
        for item in items:
            if not item.keys() <= known:
                self.count(item, known, line, f"{name}[].")
            if len(item) > 2 and ROLES.get(_role(item)) != ASSISTANT:
                self._add(_flags_without_effect(item, name), line)
            for key in ("content", "parts"):
                if isinstance(parts := item.get(key), list):
                    self._look_at_parts(parts, f"{name}[].{key}", line)

    def _look_at_parts(self, parts: list[Any], name: str, line: int) -> None:
        for part in parts:
            self.count(as_object(part), _PART_KEYS, line, f"{name}[].")

    def count(self, value: Value, known: frozenset[str], line: int, prefix: str = "") -> None:
        """Count the keys of an object that are not in `known`; `prefix` is the path of the object."""
        names = (key for key in value if key not in known and not is_empty(value[key]))
        self._add((f"{prefix}{speakable(key)}" for key in names), line)

    def _add(self, names: Iterable[str], line: int) -> None:
        for name in names:
            if name not in self._found and len(self._found) >= _NAMES_KEPT:
                name = "…"
            self._found.setdefault(name, [0, line])[0] += 1

    def result(self) -> tuple[UnusedKey, ...]:
        """Return the counted keys, the most frequent first."""
        found = [UnusedKey(name, count, line) for name, (count, line) in self._found.items()]
        return tuple(sorted(found, key=lambda key: (-key.count, key.line)))


def _role(item: Value) -> str:
    name = item.get("role", item.get("from"))
    return name if isinstance(name, str) else ""


def _flags_without_effect(item: Value, name: str) -> Iterator[str]:
    """Yield flags that ask to learn a turn of the user or the system. They are ignored: only answers are learned."""
    for flag in FLAGS:
        if item.get(flag) in (1, "1", "true"):
            yield f"{name}[].{flag} of a turn that is no answer"


def unused_keys_note(keys: tuple[UnusedKey, ...]) -> str:
    """Write a sentence for the user that names the most frequent of the unused keys."""
    named = [f"{key.name} ({key.count:,} ×)" for key in keys[:_NAMES_SPOKEN]]
    more = len(keys) - len(named)
    return f"Keys that are not used: {', '.join(named)}" + (f" and {counted(more, 'other')}." if more else ".")
