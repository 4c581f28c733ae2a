"""A conversation of four answers, the chat templates that render it, and the tokens that training learns of it."""

from lora_conversations.reader import Message
from lora_trainer.data.chat import IGNORED, Chat, prepare_tokenizer
from tests.unit.trainer.tokenizers import tokenizer_with

TURNS = 4
ANSWERS = [f"Answer {n}: naïve façade — 漢字 🙂, and {n * 37} words." for n in range(1, TURNS + 1)]


def talk(system: str | None = "Be brief.") -> list[Message]:
    messages = [Message("system", system)] if system else []
    for number, answer in enumerate(ANSWERS, 1):
        messages += [Message("user", f"Question {number}?"), Message("assistant", answer)]
    return messages


def chat_for(name: str) -> tuple[Chat, object]:
    tokenizer = tokenizer_with(name)
    prepare_tokenizer(tokenizer)
    return Chat(tokenizer), tokenizer


def learned_spans(tokenizer, row) -> list[str]:
    """The decoded text of each uninterrupted span of learned tokens."""
    pieces, current = [], []
    for token, label in zip(row.input_ids, row.labels, strict=True):
        if label == IGNORED:
            if current:
                pieces.append(tokenizer.decode(current))
            current = []
        else:
            assert label == token
            current.append(label)
    return [*pieces, tokenizer.decode(current)] if current else pieces
