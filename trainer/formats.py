"""From a parsed JSON value to examples: one reader for each format, told apart by the keys.

A reader is a pure function from one value to a `Draft`, or None for a pair without an answer. Values
that hold many pairs (a whole BrightRun file, one of its conversations) are opened by `ValueReader`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal

from trainer.examples import (
    ASSISTANT,
    ROLES,
    USER,
    BadValueError,
    Draft,
    Example,
    LineError,
    Repair,
    Turn,
    arrange,
    is_blank,
    kind,
)
from trainer.identity import continues, opening_of

Format = Literal["brightrun", "brightrun_v3", "openai_messages", "turns", "sharegpt", "alpaca", "prompt_completion"]
"""The formats, as reports name them. Plain texts: an enum's hash costs as much as a small example."""

Value = dict[str, Any]

_MAX_ID_CHARACTERS = 200
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
_KNOWN_SHAPES = (
    "Use messages, conversations, turns, current_user_input with target_response, "
    "instruction with output, or prompt with completion."
)


def _identity(*candidates: Any) -> str | None:
    for candidate in candidates:
        if isinstance(candidate, str) and candidate:
            return candidate[:_MAX_ID_CHARACTERS]
        if isinstance(candidate, int) and not isinstance(candidate, bool):
            return str(candidate)[:_MAX_ID_CHARACTERS]
    return None


def _object(value: Any) -> Value:
    return value if isinstance(value, dict) else {}


def _text(value: Any, key: str) -> str:
    """A text, or the text parts of OpenAI's content list."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        parts = [_object(part) for part in value]
        if all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts):
            return "".join(part["text"] for part in parts)
        raise BadValueError(key, "has parts that are not text", "Only text can be trained: remove the others.")
    raise BadValueError(key, f"is {kind(value)}, not a text", "Write the text or remove the example.")


def _optional_text(value: Value, *keys: str) -> str | None:
    for key in keys:
        if value.get(key) is not None:
            return _text(value[key], key)
    return None


def _unknown_role(name: Any, key: str) -> BadValueError:
    if name in ("tool", "function"):
        return BadValueError(key, "is a tool's turn", "Conversations with tool calls can't be trained: remove them.")
    what = "is missing" if name is None else f"is {kind(name)} that names no role"
    return BadValueError(key, what, "Use system, user or assistant.")


def _turns(
    items: Any, key: str, role_key: str = "role", content_key: str = "content", *, learn: bool = True
) -> list[Turn]:
    """A list of turns. With `learn`, each answer is learned, but for those with OpenAI's `weight: 0`."""
    if not isinstance(items, list) or not items:
        raise BadValueError(key, f"is {kind(items)}, not a list of turns", "Write one object for each turn.")
    turns: list[Turn] = []
    for index, item in enumerate(items):
        place = f"{key}[{index}]"
        if not isinstance(item, dict):
            needs = f"Each turn needs {role_key} and {content_key}."
            raise BadValueError(place, f"is {kind(item)}, not an object", needs)
        name, content = item.get(role_key), item.get(content_key)
        role = ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            raise _unknown_role(name, f"{place}.{role_key}")
        if not isinstance(content, str):
            content = _text(content, f"{place}.{content_key}")
        learned = learn and role == ASSISTANT and item.get("weight") != 0
        turns.append(Turn(place, role, content, learned))
    return turns


def _question(key: str, content: str) -> Turn:
    return Turn(key, USER, content, learned=False)


def _answer(value: Value, key: str) -> Turn:
    return Turn(key, ASSISTANT, _text(value[key], key), learned=True)


def _system(value: Value) -> str | None:
    return _optional_text(value, "system_prompt", "system")


def _read_openai(value: Value) -> Draft:
    metadata = _object(value.get("metadata"))
    identity = _identity(value.get("conversation_id"), metadata.get("conversation_id"))
    return Draft(_system(value), _turns(value["messages"], "messages"), identity)


def _read_turns(value: Value) -> Draft:
    return Draft(_system(value), _turns(value["turns"], "turns"), _identity(value.get("conversation_id")))


def _read_sharegpt(value: Value) -> Draft:
    items = value["conversations"]
    named = isinstance(items, list) and bool(items) and "role" in _object(items[0])
    turns = _turns(items, "conversations", *(("role", "content") if named else ("from", "value")))
    return Draft(_system(value), turns, _identity(value.get("conversation_id"), value.get("id")))


def _read_alpaca(value: Value) -> Draft:
    question = _text(value["instruction"], "instruction")
    addition = _optional_text(value, "input")
    if addition and not is_blank(addition):
        question = f"{question}\n\n{addition}"
    turns = [*_alpaca_history(value.get("history")), _question("instruction", question), _answer(value, "output")]
    return Draft(_system(value), turns, _identity(value.get("conversation_id")))


def _alpaca_history(history: Any) -> Iterator[Turn]:
    for index, pair in enumerate(history if isinstance(history, list) else ()):
        place = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadValueError(place, f"is {kind(pair)}, not a question with its answer")
        yield _question(f"{place}[0]", _text(pair[0], f"{place}[0]"))
        yield Turn(f"{place}[1]", ASSISTANT, _text(pair[1], f"{place}[1]"), learned=False)


def _read_prompt_completion(value: Value) -> Draft:
    prompt, completion = value["prompt"], value["completion"]
    if isinstance(prompt, list):
        turns = _turns(prompt, "prompt", learn=False)
    else:
        turns = [_question("prompt", _text(prompt, "prompt"))]
    if isinstance(completion, list):
        turns += _turns(completion, "completion")
    else:
        turns.append(_answer(value, "completion"))
    return Draft(_system(value), turns, _identity(value.get("conversation_id")))


def _read_brightrun(value: Value) -> Draft | None:
    """A BrightRun pair. Its history already ends with `current_user_input`, which `arrange` drops once."""
    if not isinstance(value, dict):
        raise BadValueError(None, f"is {kind(value)}, not an object")
    for key in ("current_user_input", "target_response"):
        if key not in value:
            raise BadValueError(key, "is missing", "Each pair needs current_user_input and target_response.")
    if value["target_response"] is None:
        return None
    history = value.get("conversation_history")
    turns = _turns(history, "conversation_history", learn=False) if history else []
    turns.append(_question("current_user_input", _text(value["current_user_input"], "current_user_input")))
    turns.append(_answer(value, "target_response"))
    return Draft(_system(value), turns, _identity(value.get("conversation_id")))


def _read_brightrun_v3(value: Value) -> Draft | None:
    """A whole v3 conversation: its pairs carry no history, so that only together they make sense."""
    turns: list[Turn] = []
    for index, pair in enumerate(value["training_pairs"]):
        place = f"training_pairs[{index}]"
        if not isinstance(pair, dict):
            raise BadValueError(place, f"is {kind(pair)}, not an object")
        place_of_question = f"{place}.user_input"
        turns.append(_question(place_of_question, _text(pair.get("user_input"), place_of_question)))
        answer = _object(pair.get("synthesized_output")).get("response_to_user")
        # An unanswered turn stays as context: the next user turn is joined to it.
        if answer is not None:
            place_of_answer = f"{place}.synthesized_output.response_to_user"
            turns.append(Turn(place_of_answer, ASSISTANT, _text(answer, place_of_answer), learned=True))
    if not any(turn.learned for turn in turns):
        return None
    return Draft(_system(value), turns, _conversation_identity(value))


def _conversation_identity(value: Value) -> str | None:
    metadata = _object(value.get("conversation_metadata"))
    return _identity(metadata.get("conversation_id"), value.get("conversation_id"))


_READERS: dict[Format, Callable[[Value], Draft | None]] = {
    "brightrun": _read_brightrun,
    "brightrun_v3": _read_brightrun_v3,
    "openai_messages": _read_openai,
    "turns": _read_turns,
    "sharegpt": _read_sharegpt,
    "alpaca": _read_alpaca,
    "prompt_completion": _read_prompt_completion,
}


def _tell(value: Value) -> Format:
    """The format of a value that holds one pair or one conversation.

    Raises:
        BadValueError: none of the formats.
    """
    if "messages" in value:
        return "openai_messages"
    if "target_response" in value or "current_user_input" in value:
        return "brightrun"
    if "conversations" in value:
        return "sharegpt"
    if "turns" in value:
        return "turns"
    if "instruction" in value and "output" in value:
        return "alpaca"
    if "prompt" in value and "completion" in value:
        return "prompt_completion"
    # A key may be text too, in a file of an unknown kind; only what looks like a key is repeated.
    keys = [key if _PLAIN_KEY.fullmatch(key) else "…" for key in list(value)[:5]]
    named = f"with the keys {', '.join(keys)}" if keys else "without keys"
    raise BadValueError(None, f"is an object {named}, which is no known format", _KNOWN_SHAPES)


def is_turn(value: object) -> bool:
    """Whether a value is one turn of a ShareGPT conversation, rather than a conversation."""
    return isinstance(value, dict) and ("from" in value or "role" in value or "value" in value)


class ValueReader:
    """Turns values into examples and counts, over a whole dataset, what it met on the way."""

    def __init__(self) -> None:
        self.formats: Counter[Format] = Counter()
        """Examples by format."""
        self.skipped = 0
        """Pairs without an answer (`target_response` null)."""
        self.repairs: Counter[Repair] = Counter()
        self._last: Example | None = None

    def read(self, value: object, line: int, key: str = "") -> list[Example | LineError]:
        """The examples of one line, one element, or one whole file. `key` is its place in its document."""
        try:
            return self._open(value, line, key)
        except BadValueError as error:
            return [_line_error(error, line, key)]

    def _open(self, value: object, line: int, key: str) -> list[Example | LineError]:
        if not isinstance(value, dict):
            raise BadValueError(None, f"is {kind(value)}, not an object", _KNOWN_SHAPES)
        if "_meta" in value:
            return []  # BrightRun's header; its total_pairs was seen to be twice the truth
        if "training_pairs" in value:
            return self._open_conversation(value, line, key)
        items = value.get("conversations")
        if isinstance(items, list) and not (items and is_turn(items[0])) and not key.startswith("conversations"):
            return [
                example
                for index, item in enumerate(items)
                for example in self.read(item, line, f"conversations[{index}]")
            ]
        return self._finish(_tell(value), value, line)

    def _open_conversation(self, value: Value, line: int, key: str) -> list[Example | LineError]:
        pairs = value["training_pairs"]
        if not isinstance(pairs, list):
            raise BadValueError("training_pairs", f"is {kind(pairs)}, not a list")
        first = _object(pairs[0]) if pairs else {}
        if "synthesized_output" in first or "user_input" in first:
            return self._finish("brightrun_v3", value, line)
        examples: list[Example | LineError] = []
        enclosing = _Enclosing(_conversation_identity(value))
        for index, pair in enumerate(pairs):
            try:
                examples += self._finish("brightrun", pair, line, enclosing)
            except BadValueError as error:
                place = f"training_pairs[{index}]"
                examples.append(_line_error(error, line, f"{key}.{place}" if key else place))
        return examples

    def _finish(
        self, form: Format, value: Value, line: int, enclosing: _Enclosing | None = None
    ) -> list[Example | LineError]:
        draft = _READERS[form](value)
        if draft is None:
            self.skipped += 1
            return []
        messages, trained = arrange(draft, self.repairs)
        self.formats[form] += 1
        example = Example(messages, trained, draft.conversation_id, line)
        if enclosing is not None:
            example = enclosing.place(example)
        else:
            last = self._last
            opening = opening_of(last if last is not None and continues(example, last) else example)
            example = example._replace(opening=opening)
            self._last = example
        return [example]


class _Enclosing:
    """A conversation that holds its pairs: all have its id, and begin as the first of them does."""

    def __init__(self, identity: str | None) -> None:
        self._identity = identity
        self._opening: str | None = None

    def place(self, example: Example) -> Example:
        """The pair as a part of this conversation. Its own `conversation_id` may only name a kind."""
        if self._opening is None:
            self._opening = opening_of(example)
        identity = example.conversation_id if self._identity is None else self._identity
        return example._replace(conversation_id=identity, opening=self._opening)


def _line_error(error: BadValueError, line: int, key: str) -> LineError:
    place = f"{key}.{error.key}" if key and error.key else error.key or key or None
    return LineError(line, place, error.error, error.suggestion)
