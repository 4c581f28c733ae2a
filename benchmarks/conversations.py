"""Conversations for the trainer's benchmark, made on the spot: in the application's format, about as long as its own.

A pair repeats the whole conversation before it, as in the application's files: merging them gains that. The texts
say nothing in particular. They are made of changing words, so that a tokenizer can't learn whole sentences.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WHO = ("the bank", "your landlord", "a neighbour", "her sister", "the tax office", "my employer", "an old friend")
_DOES = ("sends", "keeps", "forgets", "pays back", "asks for", "counts", "explains", "loses", "shares", "writes down")
_WHAT = ("a letter", "the rent", "three invoices", "a small loan", "the savings", "a promise", "last year's receipts")
_WHEN = ("on Monday", "after lunch", "every second week", "before the holidays", "in March", "as soon as possible")
_WHY = ("because nobody asked", "so that it is done", "although it is late", "while there is time", "if that helps")


@dataclass(frozen=True)
class Size:
    """How large a dataset is: conversations, pairs of each, and words of each text."""

    conversations: int = 12
    pairs: int = 4
    system_words: int = 100
    question_words: int = 80
    answer_words: int = 220


def write_conversations(path: Path, size: Size, *, seed: int = 7) -> int:
    """Write a dataset of one pair a line; the same bytes for the same size and seed. Returns the number of pairs."""
    chance = random.Random(seed)
    system = _text(size.system_words, chance)
    pairs = [pair for number in range(size.conversations) for pair in _conversation(number, system, size, chance)]
    path.write_text("\n".join(json.dumps(pair) for pair in pairs))
    return len(pairs)


def _conversation(number: int, system: str, size: Size, chance: random.Random) -> list[dict[str, Any]]:
    history: list[dict[str, Any]] = []
    pairs = []
    for turn in range(2, 2 * size.pairs + 1, 2):
        question, answer = (_text(words, chance) for words in (size.question_words, size.answer_words))
        history.append({"turn": turn - 1, "role": "user", "content": question})
        pairs.append(
            {
                "id": f"benchmark_{number}_turn{turn}",
                "conversation_id": f"benchmark-{number}",
                "turn_number": turn,
                "system_prompt": system,
                "conversation_history": list(history),
                "current_user_input": question,
                "target_response": answer,
            }
        )
        history.append({"turn": turn, "role": "assistant", "content": answer})
    return pairs


def _text(words: int, chance: random.Random) -> str:
    """Sentences of at least so many words."""
    text: list[str] = []
    while len(text) < words:
        parts = [chance.choice(kind) for kind in (_WHO, _DOES, _WHAT, _WHEN, _WHY)]
        sentence = f"{' '.join(parts)}, and {chance.randint(2, 990)} of {chance.randint(2, 99)} remain."
        text += (sentence[0].upper() + sentence[1:]).split()
    return " ".join(text)
