"""Reads one JSON object of a known format into a conversation. The object's keys decide which format it has.

The reader of a format is a pure function from an object to a `Draft`; it returns None for a pair without an answer.
`lora_conversations.values` handles objects and lists that hold several conversations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from lora_conversations.errors import BadValueError
from lora_conversations.examples import (
    ASSISTANT,
    USER,
    Draft,
    Turn,
    is_blank,
    kind,
)
from lora_conversations.parts import read_content, read_text
from lora_conversations.tools import as_object, is_unset
from lora_conversations.turns import Spelling, Value, answer_turn, read_turns, weight_of
from lora_conversations.verdicts import EDITS, ORIGINALS

Format = Literal[
    "brightrun",
    "brightrun_v3",
    "openai_messages",
    "turns",
    "sharegpt",
    "gemini",
    "alpaca",
    "prompt_completion",
    "question_answer",
    "preference",
]
"""The names of the formats, as reports show them. No enum: hashing its members takes as long as reading an example."""

SYSTEM_KEYS = ("system_prompt", "system")
QUESTIONS = ("question", "query", "prompt", "instruction")
ADDITIONS = ("input", "context")
"""Keys of texts that are added to a question. `input` is the question itself where no other key of one is present."""
ANSWERS = ("answer", "response", "completion", "output")
SIDES = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))
"""Keys of the better and the worse answer of a pair."""
_SHAREGPT, GEMINI = Spelling("from", "value"), Spelling("role", "parts")

_MAX_ID_CHARACTERS = 200
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
KNOWN_SHAPES = (
    "Use messages, conversations, turns, current_user_input with target_response, instruction with output, "
    "prompt with completion, question with answer, or prompt with chosen and rejected."
)


def speakable(key: str) -> str:
    """Return a key if an error message may show it, else “…”: in a file of unknown format a key may be private text."""
    return key if _PLAIN_KEY.fullmatch(key) else "…"


def identity_of(*candidates: Any) -> str | None:
    """Return the first candidate that can be the id of a conversation, shortened; None if there is none."""
    for candidate in candidates:
        if isinstance(candidate, str) and candidate:
            return candidate[:_MAX_ID_CHARACTERS]
        if isinstance(candidate, int) and not isinstance(candidate, bool):
            return str(candidate)[:_MAX_ID_CHARACTERS]
    return None


def conversation_identity(value: Value) -> str | None:
    """Return the id of an object that holds the pairs of one conversation; None if it has no id."""
    metadata = as_object(value.get("conversation_metadata"))
    return identity_of(metadata.get("conversation_id"), value.get("conversation_id"))


def is_turn(value: object) -> bool:
    """Tell whether a value is one turn of a conversation, rather than a whole conversation."""
    return isinstance(value, dict) and ("from" in value or "role" in value or "value" in value)


def lists_examples(items: object) -> bool:
    """Tell whether a value is a list of examples, rather than a list of texts or of one conversation's turns."""
    return isinstance(items, list) and bool(items) and isinstance(items[0], dict | list) and not is_turn(items[0])


def _optional_texts(value: Value, keys: Iterable[str]) -> Iterator[str]:
    for key in keys:
        if key in value and value[key] is not None and not is_blank(text := read_text(value[key], key)):
            yield text


def system_texts(value: Value) -> tuple[str, ...]:
    """Return the system prompts that a row has beside its turns."""
    return tuple(_optional_texts(value, SYSTEM_KEYS))


def question_turn(key: str, content: str) -> Turn:
    """Make the turn of a question that is a text of a row."""
    return Turn(key, USER, content, learned=False)


def _answer(value: Value, key: str) -> Turn:
    """Read the answer of a row that has one; its thought may stand in a key of the row."""
    return answer_turn(key, key, read_content(value[key], key), beside=value)


def _conversation(value: Value, turns: list[Turn], identity: str | None) -> Draft:
    """Make a draft. If it has answers and none of them is learned, it is left out, like a row with weight 0."""
    unwanted = not any(turn.learned for turn in turns) and any(turn.role == ASSISTANT for turn in turns)
    return Draft(system_texts(value), turns, identity, unwanted)


def _read_openai(value: Value) -> Draft:
    metadata = as_object(value.get("metadata"))
    identity = identity_of(value.get("conversation_id"), metadata.get("conversation_id"))
    return _conversation(value, read_turns(value["messages"], "messages"), identity)


def _read_turns_row(value: Value) -> Draft:
    return _conversation(value, read_turns(value["turns"], "turns"), identity_of(value.get("conversation_id")))


def _read_sharegpt(value: Value) -> Draft:
    items = value["conversations"]
    turns = read_turns(items, "conversations", spelling_of(items))
    return _conversation(value, turns, identity_of(value.get("conversation_id"), value.get("id")))


def spelling_of(items: Any) -> Spelling:
    """Return the keys that the turns of a ShareGPT conversation, or of a bare list of turns, use."""
    named = isinstance(items, list) and bool(items) and "role" in as_object(items[0])
    return Spelling() if named else _SHAREGPT


def read_bare_turns(items: list[Any]) -> Draft:
    """Read a conversation that is a list of turns, without an object around it."""
    return _conversation({}, read_turns(items, "", spelling_of(items)), None)


def _read_gemini(value: Value) -> Draft:
    turns = read_turns(value["contents"], "contents", GEMINI)
    draft = _conversation(value, turns, identity_of(value.get("conversation_id")))
    for key in ("systemInstruction", "system_instruction"):
        instruction = value.get(key)
        if instruction is not None:
            parts = instruction.get("parts") if isinstance(instruction, dict) else instruction
            draft = draft._replace(system=(*draft.system, read_text(parts, key)))
    return draft


def _read_alpaca(value: Value) -> Draft:
    return _read_pair(value, "instruction", "output")


def _read_question_answer(value: Value) -> Draft:
    question, answer = only_one(value, QUESTIONS) or "input", _answer_key(value)
    assert answer is not None, "detect_format chose this reader because the row has one answer"
    return _read_pair(value, question, answer)


def _read_pair(value: Value, question_key: str, answer_key: str) -> Draft:
    """Read a question with its answer. Texts that belong to the question are added to it after an empty line."""
    turns = [*read_question(value, question_key), _answer(value, answer_key)]
    return Draft(system_texts(value), turns, identity_of(value.get("conversation_id")))


def read_question(value: Value, key: str) -> list[Turn]:
    """Return the turns of a row before its answer: its history, and the question with what is added to it.

    Raises:
        BadValueError: one of the texts is something else.
    """
    asked = _optional_texts(value, [key, *(name for name in ADDITIONS if name != key)])
    return [*read_history(value.get("history")), question_turn(key, "\n\n".join(asked))]


def read_history(history: Any) -> Iterator[Turn]:
    """Yield the turns of a list of questions with answers; none of them is learned.

    Raises:
        BadValueError: the value is something else.
    """
    if history is None:
        return
    if not isinstance(history, list):
        raise BadValueError("history", f"is {kind(history)}, not a list of questions with answers")
    for index, pair in enumerate(history):
        place = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadValueError(place, f"is {kind(pair)}, not a question with its answer")
        yield question_turn(f"{place}[0]", read_text(pair[0], f"{place}[0]"))
        answer = f"{place}[1]"
        yield answer_turn(answer, answer, read_content(pair[1], answer))._replace(learned=False)


def _read_prompt_completion(value: Value) -> Draft:
    prompt, completion = value["prompt"], value["completion"]
    if isinstance(prompt, list):
        asked = read_turns(prompt, "prompt", learn=False)
    else:
        asked = [question_turn("prompt", read_text(prompt, "prompt"))]
    answered = read_turns(completion, "completion") if isinstance(completion, list) else [_answer(value, "completion")]
    draft = _conversation(value, answered, identity_of(value.get("conversation_id")))
    return draft._replace(turns=asked + answered)


def _read_brightrun(value: Any) -> Draft | None:
    """Read a BrightRun pair. Its history already ends with `current_user_input`; `arrange` drops the repetition."""
    if not isinstance(value, dict):
        raise BadValueError(None, f"is {kind(value)}, not an object")
    for key in ("current_user_input", "target_response"):
        if key not in value:
            raise BadValueError(key, "is missing", "Each pair needs current_user_input and target_response.")
    if value["target_response"] is None:
        return None
    history = value.get("conversation_history")
    turns = read_turns(history, "conversation_history", learn=False) if history else []
    turns.append(question_turn("current_user_input", read_text(value["current_user_input"], "current_user_input")))
    turns.append(_answer(value, "target_response"))
    return Draft(system_texts(value), turns, identity_of(value.get("conversation_id")))


def _read_brightrun_v3(value: Value) -> Draft | None:
    """Read a whole BrightRun v3 conversation. Its pairs carry no history, so they make sense only together."""
    turns: list[Turn] = []
    for index, pair in enumerate(value["training_pairs"]):
        turns += _read_v3_pair(pair, f"training_pairs[{index}]")
    if not any(turn.role == ASSISTANT for turn in turns):
        return None
    return _conversation(value, turns, conversation_identity(value))


def _read_v3_pair(pair: Any, place: str) -> Iterator[Turn]:
    if not isinstance(pair, dict):
        raise BadValueError(place, f"is {kind(pair)}, not an object")
    if "user_input" not in pair:
        raise BadValueError(f"{place}.user_input", "is missing", "Each pair needs user_input and synthesized_output.")
    yield question_turn(f"{place}.user_input", read_text(pair["user_input"], f"{place}.user_input"))
    output = pair.get("synthesized_output")
    if output is not None and not isinstance(output, dict):
        raise BadValueError(f"{place}.synthesized_output", f"is {kind(output)}, not an object")
    answer = as_object(output).get("response_to_user")
    # A turn without an answer stays as context: `arrange` joins the next user turn to it.
    if answer is not None:
        key = f"{place}.synthesized_output.response_to_user"
        weight = weight_of(pair, place)
        turn = answer_turn(key, key, read_content(answer, key))
        yield turn._replace(learned=weight > 0, weight=weight)


READERS: dict[Format, Callable[[Value], Draft | None]] = {
    "brightrun": _read_brightrun,
    "brightrun_v3": _read_brightrun_v3,
    "openai_messages": _read_openai,
    "turns": _read_turns_row,
    "sharegpt": _read_sharegpt,
    "gemini": _read_gemini,
    "alpaca": _read_alpaca,
    "prompt_completion": _read_prompt_completion,
    "question_answer": _read_question_answer,
}
_FORMAT_BY_KEY: tuple[tuple[str, Format], ...] = (
    ("messages", "openai_messages"),
    ("target_response", "brightrun"),
    ("current_user_input", "brightrun"),
    ("conversations", "sharegpt"),
    ("turns", "turns"),
    ("contents", "gemini"),
)


def detect_format(value: Value) -> Format | None:
    """Return the format of an object that holds one pair or one conversation; None if its keys match no format."""
    if any(better in value and worse in value for better, worse in SIDES):
        return "preference"
    for key, form in _FORMAT_BY_KEY:
        if key in value:
            return form
    if "instruction" in value and "output" in value:
        return "alpaca"
    if "prompt" in value and "completion" in value:
        return "prompt_completion"
    asks = only_one(value, QUESTIONS) or (not any(key in value for key in QUESTIONS) and "input" in value)
    return "question_answer" if asks and _answer_key(value) else None


def _answer_key(value: Value) -> str | None:
    """Return the key of a row's answer; where it has only an original and an edited one, that is the edited one."""
    if any(key in value for key in ANSWERS):
        return only_one(value, ANSWERS)
    return only_one(value, EDITS) if any(not is_unset(value.get(key)) for key in ORIGINALS) else None


def only_one(value: Value, keys: Iterable[str]) -> str | None:
    """Return which of some keys an object has; None if it has none or several of them."""
    found = [key for key in keys if key in value]
    return found[0] if len(found) == 1 else None


def unknown_format(value: Value) -> BadValueError:
    """Make the error for an object whose format is not known."""
    if is_turn(value) and ("content" in value or "value" in value):
        return BadValueError(
            None,
            "is a single turn, not a conversation",
            "Put all turns of a conversation into the messages of one object.",
        )
    lists = [speakable(key) for key in list(value)[:5] if lists_examples(value[key])]
    if lists:
        hint = "Upload one list of examples, or JSON Lines, with one example a line."
        return BadValueError(None, f"holds examples under {', '.join(lists)}, which is no known format", hint)
    keys = [speakable(key) for key in list(value)[:5]]
    named = f"with the keys {', '.join(keys)}" if keys else "without keys"
    return BadValueError(None, f"is an object {named}, which is no known format", KNOWN_SHAPES)
