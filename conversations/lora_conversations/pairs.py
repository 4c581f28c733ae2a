"""Reads preference pairs: one prompt with a better and a worse answer, as OpenAI, TRL and others write them.

- The prompt is `prompt` (a text or turns), a question's key, `messages`, `conversations` or `turns`; the sides are
  `chosen` and `rejected`: texts, turns, or one turn.
- OpenAI: the prompt is `input` with `messages` and `tools`; the sides are `preferred_output`, `non_preferred_output`.
- Without a prompt, it is what both sides begin with (TRL calls it implicit): whole conversations, transcripts
  (`Human:` … `Assistant:` …), or texts.
"""

from __future__ import annotations

import re
from itertools import chain

from lora_conversations.errors import BadValueError
from lora_conversations.examples import ASSISTANT, SYSTEM, Draft, Turn, kind
from lora_conversations.formats import (
    QUESTIONS,
    SIDES,
    identity_of,
    only_one,
    question_turn,
    read_question,
    spelling_of,
    system_texts,
)
from lora_conversations.parts import read_content
from lora_conversations.tools import as_object, is_unset
from lora_conversations.turns import Value, answer_turn, read_turns

CONVERSATIONS = ("messages", "conversations", "turns")
"""Keys of a pair whose value may be its prompt as a list of turns."""
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_PROMPT_ONCE = "Write the prompt once: in front of both sides, or under a key of its own."


def sides_of(value: Value) -> tuple[str, str]:
    """Return the keys of the better and the worse answer of a pair."""
    return next((better, worse) for better, worse in SIDES if better in value and worse in value)


def prompt_keys(value: Value) -> list[str]:
    """Return the keys of a pair that hold its prompt."""
    keys = [key for key in CONVERSATIONS if not is_unset(value.get(key))]
    keys += ["prompt"] if not is_unset(value.get("prompt")) else []
    if "messages" in as_object(value.get("input")) or isinstance(value.get("input"), list):
        keys.append("input")
    question = only_one(value, QUESTIONS)
    if question is not None and question not in keys and not is_unset(value[question]):
        keys.append(question)
    return keys or (["input"] if not is_unset(value.get("input")) else [])


def read_preference(value: Value) -> Draft:
    """Read a pair as two conversations that differ in their last answer.

    Raises:
        BadValueError: a side is no answer, or the prompt contradicts the sides.
    """
    better, worse = sides_of(value)
    prompts = [_read_prompt(value, key) for key in prompt_keys(value)]
    if not prompts and isinstance(value[better], str) and isinstance(value[worse], str):
        chosen, rejected = _split_texts(value, better, worse)
    else:
        chosen, rejected = _read_side(value, better), _read_side(value, worse)
    if _is_whole(chosen) and _is_whole(rejected):
        for prompt in prompts:
            _check_same(prompt, chosen, rejected)
    elif _is_whole(chosen) != _is_whole(rejected):
        raise BadValueError(None, f"has the prompt in only one of {better} and {worse}", _PROMPT_ONCE)
    elif len(prompts) > 1:
        raise BadValueError(None, f"has two prompts, {' and '.join(prompt_keys(value)[:2])}", "Keep one of them.")
    else:
        chosen, rejected = ([*chain.from_iterable(prompts), *side] for side in (chosen, rejected))
    metadata = as_object(value.get("metadata"))
    identity = identity_of(value.get("conversation_id"), metadata.get("conversation_id"))
    chosen, rejected = _learn_last(chosen, better), _learn_last(rejected, worse)
    unwanted = not any(turn.learned for turn in chosen) or not any(turn.learned for turn in rejected)
    return Draft(system_texts(value), chosen, identity, unwanted, worse=rejected)


def _read_prompt(value: Value, key: str) -> list[Turn]:
    raw = value[key]
    if key == "input" and isinstance(raw, dict):
        if "messages" not in raw:
            raise BadValueError("input.messages", "is missing", "Write the turns before both answers there.")
        return read_turns(raw["messages"], "input.messages", spelling_of(raw["messages"]), learn=False)
    if isinstance(raw, list) and raw and isinstance(raw[0], dict) and raw[0].keys() & {"role", "from"}:
        return read_turns(raw, key, spelling_of(raw), learn=False)
    if key in CONVERSATIONS:
        return read_turns(raw, key, learn=False)
    return read_question(value, key)


def _read_side(value: Value, key: str) -> list[Turn]:
    raw = value[key]
    if isinstance(raw, dict):
        raw = [raw]
    if isinstance(raw, list) and raw and as_object(raw[0]).keys() & {"role", "from"}:
        return read_turns(raw, key, spelling_of(raw))
    if raw is None or (isinstance(raw, list) and not (raw and as_object(raw[0]).get("type"))):
        again = "Write the answer as a text or as turns, or remove the example."
        raise BadValueError(key, f"is {kind(raw)}, not an answer", again)
    if isinstance(raw, str) and (turns := _transcript(raw, key)):
        return turns
    return [answer_turn(key, key, read_content(raw, key))]


def _transcript(text: str, key: str) -> list[Turn]:
    """Return the turns of a text that begins with `Human:`, in which `Assistant:` answers; none if it does not."""
    if not text.lstrip().startswith("Human:"):
        return []
    _, *pieces = _SPEAKER.split(text.strip())
    spoken = zip(pieces[::2], pieces[1::2], strict=True)
    return [
        question_turn(key, said.strip())
        if speaker == "Human"
        else answer_turn(key, key, read_content(said.strip(), key))
        for speaker, said in spoken
    ]


def _split_texts(value: Value, better: str, worse: str) -> tuple[list[Turn], list[Turn]]:
    """Take as the prompt of two texts what both begin with, up to a space, as TRL does; transcripts have turns."""
    texts = value[better], value[worse]
    transcripts = [_transcript(text, key) for text, key in zip(texts, (better, worse), strict=True)]
    if all(transcripts):
        return transcripts[0], transcripts[1]
    different = (index for index, (one, other) in enumerate(zip(*texts, strict=False)) if one != other)
    common = next(different, min(map(len, texts)))
    shared = texts[0][: max(texts[0].rfind(" ", 0, common), texts[0].rfind("\n", 0, common)) + 1]
    if not shared.strip():
        again = "Write the question under prompt, beside both answers."
        raise BadValueError(None, f"has no prompt: {better} and {worse} begin differently", again)
    prompt = question_turn(better, shared.strip())
    chosen, rejected = (
        [prompt, answer_turn(key, key, read_content(text[len(shared) :], key))]
        for text, key in zip(texts, (better, worse), strict=True)
    )
    return chosen, rejected


def _is_whole(side: list[Turn]) -> bool:
    """Tell whether a side is a whole conversation, with its prompt."""
    return next((turn.role != ASSISTANT for turn in side), False)


def _check_same(prompt: list[Turn], chosen: list[Turn], rejected: list[Turn]) -> None:
    """Refuse a prompt that is not what both sides begin with. Some files also repeat the whole better conversation."""
    has_system = any(turn.role == SYSTEM for turn in prompt)
    said, better, worse = (_said(turns, has_system) for turns in (prompt, chosen, rejected))
    if said != better and not (said == better[: len(said)] == worse[: len(said)]):
        raise BadValueError(prompt[0].key, "differs from the beginning of both sides", _PROMPT_ONCE)


def _said(turns: list[Turn], has_system: bool) -> list[tuple[str, str]]:
    """Return role and text of each turn; the system prompt counts only if the prompt has one, too."""
    return [(turn.role, turn.content.strip()) for turn in turns if has_system or turn.role != SYSTEM]


def _learn_last(turns: list[Turn], key: str) -> list[Turn]:
    """Let the last answer be learned, and no other."""
    last = next((index for index in range(len(turns) - 1, -1, -1) if turns[index].role == ASSISTANT), None)
    if last is None or turns[last].key.split("[")[0].split(".")[0] != key:
        raise BadValueError(key, "holds no answer", "Each side needs an answer of the assistant.")
    return [turn._replace(learned=turn.learned and index == last) for index, turn in enumerate(turns)]
