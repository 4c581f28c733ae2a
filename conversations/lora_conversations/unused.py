"""Counts keys of a dataset's rows that the reader does not use, so that the user learns what was ignored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_contract.words import counted
from lora_conversations.examples import ASSISTANT, ROLES, SYSTEM
from lora_conversations.formats import ADDITIONS, GEMINI, SIDES, Format, is_turn, speakable, spelling_of
from lora_conversations.json_text import parse
from lora_conversations.keys import (
    CONTENTS,
    CONTEXT_LISTS,
    LEARNED_LISTS,
    ROLE_KEYS,
    ROW_KEYS,
    TURN_KEYS,
    V3_PAIR_KEYS,
    V3_PAIR_PREFIX,
    VERDICT_KEYS,
)
from lora_conversations.pairs import CONVERSATIONS, prompt_keys
from lora_conversations.parts import part_keys
from lora_conversations.thoughts import REASONING, block_keys
from lora_conversations.tools import CALL_LISTS, DECLARATIONS, TOOL_LISTS, as_object, call_keys, is_unset
from lora_conversations.turns import CALL_ROLES, FLAGS, Spelling, Value, weight_of
from lora_conversations.verdicts import THUMBS

if TYPE_CHECKING:
    from lora_contract.hyperparameters import Method

_NAMES_KEPT = 200
_NAMES_SPOKEN = 10
_TEXTS_KEPT = 4
"""Each may take a few megabytes when it is parsed."""
_INSPECTED = frozenset({"metadata", "weight", "feedback", *TOOL_LISTS, *REASONING})
"""Keys of a row whose values have keys of their own, or are not used by every method."""
_NOT_LEARNED = (None, 0, "0", "0.0", "false", "False")
_WHOLE_WEIGHTS = (None, 0, 1, "0", "1", "0.0", "1.0")


@dataclass(frozen=True, slots=True)
class UnusedKey:
    """A key that is not used: its path in a row, how often it occurs, and the line where it occurs first."""

    name: str
    count: int
    line: int


class UnusedKeys:
    """Counts keys that a method does not use, in bounded memory. Keys with an empty value are not counted."""

    def __init__(self) -> None:
        self._found: dict[str, list[int]] = {}
        self._method: Method = "sft"
        self._tool_texts: dict[str, list[Value]] = {}

    def look(self, form: Format, value: Value, line: int, method: Method) -> None:
        """Count the unused keys of a row of the format `form`, and of all in it; `method` learns from the row."""
        self._method = method
        is_pair = form == "preference"
        known = _preference_keys(value) if is_pair else ROW_KEYS[form]
        if not value.keys() <= known:
            self.count(value, known if is_pair else known | VERDICT_KEYS[method], line)
        if not value.keys().isdisjoint(_INSPECTED):
            self._look_at_row(value, line)
        if is_pair:
            self._look_at_input(value, line)
        elif form == "brightrun_v3":
            self._look_at_v3_pairs(value, line)
        for name, items in value.items():
            if isinstance(items, list | dict):
                self._look_at_list(form, name, items, line)

    def _look_at_list(self, form: Format, name: str, value: list[Any] | Value, line: int) -> None:
        learned, context = LEARNED_LISTS.get(form, ()), CONTEXT_LISTS.get(form, ())
        items = value if isinstance(value, list) else [value]
        if (name in learned or name in context) and items and is_turn(items[0]):
            path = f"{name}[]" if isinstance(value, list) else name
            self.look_at_turns(items, path, line, self._method, form, is_learned=name in learned)
        elif isinstance(value, list) and (name in CONTENTS or name in learned):
            self._look_at_parts(items, name, line)

    def _look_at_v3_pairs(self, value: Value, line: int) -> None:
        for pair in value["training_pairs"]:
            known = V3_PAIR_KEYS | {key for key in pair if key.startswith(V3_PAIR_PREFIX)}
            self.count(pair, known, line, "training_pairs[].")
            output = as_object(pair.get("synthesized_output"))
            self.count(output, frozenset({"response_to_user"}), line, "training_pairs[].synthesized_output.")

    def _look_at_row(self, value: Value, line: int) -> None:
        if isinstance(value.get("metadata"), dict):
            self.count(value["metadata"], frozenset({"conversation_id"}), line, "metadata.")
        elif not is_unset(value.get("metadata")):
            self._add(["metadata"], line)
        for name in TOOL_LISTS:
            self._look_at_tools(value.get(name), name, line)
        self._look_beside(value, "", line)

    def _look_at_input(self, value: Value, line: int) -> None:
        """Look at the prompt of a pair as OpenAI writes it."""
        if not isinstance(inner := value.get("input"), dict):
            return
        self.count(inner, frozenset({"messages", *TOOL_LISTS}), line, "input.")
        for name in TOOL_LISTS:
            self._look_at_tools(inner.get(name), f"input.{name}", line)
        if isinstance(inner.get("messages"), list):
            self.look_at_turns(
                inner["messages"], "input.messages[]", line, self._method, "preference", is_learned=False
            )

    def look_at_turns(
        self,
        items: list[Any],
        path: str,
        line: int,
        method: Method,
        form: Format = "sharegpt",
        *,
        is_learned: bool = True,
    ) -> None:
        """Count the unused keys of a list of turns, and of everything in them.

        `path` is that of one turn. `is_learned`: answers among them may be learned.
        """
        self._method = method
        spelling = _spelling_of(form, items)
        known = frozenset({*spelling, *FLAGS}) | TURN_KEYS.get(form, frozenset())
        has_verdicts = is_learned and form != "preference"
        for index, item in enumerate(items):
            name = item.get(spelling.role)
            content = item.get(spelling.content)
            if len(item) == 2 and type(content) is str and name not in CALL_ROLES:
                continue  # Nearly all turns have a role and a text, and there may be millions of them.
            role = ASSISTANT if name in CALL_ROLES else ROLES.get(name, "")
            if name in CALL_ROLES:
                self._look_at_calls(content, f"{path}.{spelling.content}", line)
            elif isinstance(content, list):
                self._look_at_parts(content, f"{path}.{spelling.content}", line)
            if not item.keys() <= known:
                lists_tools = index == 0 and path.removesuffix("[]") in CONVERSATIONS
                own = ROLE_KEYS.get(role, frozenset()) if role != SYSTEM or lists_tools else frozenset()
                if role == ASSISTANT and has_verdicts and weight_of(item):
                    own |= VERDICT_KEYS[method]
                self.count(item, known | own, line, f"{path}.")
                self._look_into_turn(item, role, f"{path}.", line, lists_tools=lists_tools)
            if role != ASSISTANT or not is_learned:
                self._add(_flags_without_effect(item, path), line)

    def _look_into_turn(self, item: Value, role: str, prefix: str, line: int, *, lists_tools: bool) -> None:
        """Look at the values of a turn that have keys of their own."""
        if role == ASSISTANT:
            self._look_at_answer(item, prefix, line)
        elif role == SYSTEM and lists_tools:
            for key in TOOL_LISTS:
                self._look_at_tools(item.get(key), f"{prefix}{key}", line)

    def _look_at_answer(self, item: Value, prefix: str, line: int) -> None:
        for name in CALL_LISTS:
            self._look_at_calls(item.get(name), f"{prefix}{name}", line)
        self._look_beside(item, prefix, line)

    def _look_at_calls(self, calls: Any, name: str, line: int) -> None:
        for call in _elements(calls):
            for inner, known in call_keys(call).items():
                holder = call if inner == "" else as_object(call.get(inner))
                self.count(holder, known, line, f"{name}{_brackets(calls)}.{inner}{'.' * bool(inner)}")

    def _look_beside(self, value: Value, prefix: str, line: int) -> None:
        """Look at weights, thoughts and thumbs of a row or of an answer."""
        if self._method != "sft" and value.get("weight") not in _WHOLE_WEIGHTS:
            self._add([f"{prefix}weight"], line)
        for name in REASONING:
            for block in () if isinstance(value.get(name), str) else _elements(value.get(name)):
                self.count(block, block_keys(block), line, f"{prefix}{name}{_brackets(value[name])}.")
        if "feedback" in VERDICT_KEYS[self._method] and isinstance(value.get("feedback"), dict):
            self.count(value["feedback"], frozenset(THUMBS), line, f"{prefix}feedback.")

    def _look_at_tools(self, tools: Any, name: str, line: int) -> None:
        for tool in self._tools_in(tools):
            if isinstance(tool.get("function"), dict):
                self.count(tool, frozenset({"type", "function"}), line, f"{name}[].")
            elif found := [key for key in DECLARATIONS if isinstance(tool.get(key), list)]:
                self.count(tool, frozenset({found[0]}), line, f"{name}[].")

    def _tools_in(self, tools: Any) -> list[Value]:
        """The objects of a list of tools. Many rows have the same list as a text, which is parsed once for them."""
        if not isinstance(tools, str):
            return list(_elements(tools))
        if tools not in self._tool_texts:
            if len(self._tool_texts) >= _TEXTS_KEPT:
                self._tool_texts.clear()
            self._tool_texts[tools] = list(_elements(tools))
        return self._tool_texts[tools]

    def _look_at_parts(self, parts: list[Any], name: str, line: int) -> None:
        for part in parts:
            for inner, known in part_keys(as_object(part)).items():
                holder = as_object(part) if inner == "" else as_object(as_object(part).get(inner))
                self.count(holder, known, line, f"{name}[].{inner}{'.' * bool(inner)}")
            if isinstance(inner_parts := as_object(part).get("content"), list):
                self._look_at_parts(inner_parts, f"{name}[].content", line)

    def count(self, value: Value, known: frozenset[str], line: int, prefix: str = "") -> None:
        """Count the keys of an object that are not in `known`; `prefix` is the path of the object."""
        names = (key for key in value if key not in known and not is_unset(value[key]))
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


def _preference_keys(value: Value) -> frozenset[str]:
    prompts = prompt_keys(value)
    sides = {key for better, worse in SIDES if better in value and worse in value for key in (better, worse)}
    is_text = any(isinstance(value[key], str) for key in prompts if key not in CONVERSATIONS)
    return ROW_KEYS["preference"] | sides | set(prompts) | ({*ADDITIONS, "history"} if is_text else set())


def _elements(value: Any) -> Iterator[Value]:
    """Yield the objects of a list, an object itself, or those of a text that holds either as JSON."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        value = parse(value, "")
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):
            yield item


def _brackets(value: Any) -> str:
    return "" if isinstance(value, dict) or (isinstance(value, str) and value[:1] == "{") else "[]"


def _spelling_of(form: Format, items: list[Any]) -> Spelling:
    """Return the names of the keys for role and content that the reader of a format used for these turns."""
    if form == "gemini":
        return GEMINI
    return spelling_of(items) if form in ("sharegpt", "preference") else Spelling()


def _flags_without_effect(item: Value, path: str) -> Iterator[str]:
    """Yield flags that ask for anything else than that a turn is not learned, which it is not. They are ignored."""
    for flag in FLAGS:
        if item.get(flag) not in _NOT_LEARNED:
            yield f"{path}.{flag} of a turn that is no answer"


def unused_keys_note(keys: tuple[UnusedKey, ...]) -> str:
    """Write a sentence for the user that names the most frequent of the unused keys."""
    named = [f"{key.name} ({key.count:,} ×)" for key in keys[:_NAMES_SPOKEN]]
    more = len(keys) - len(named)
    return f"Keys that are not used: {', '.join(named)}" + (f" and {counted(more, 'other')}." if more else ".")
