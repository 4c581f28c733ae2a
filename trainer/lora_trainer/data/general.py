"""The fixed set of general text and chat, on which every adapter is measured besides its own dataset.

The texts are in `general.toml`: passages, of which every token is predicted, and short chats, of which the answers are.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from lora_contract.evaluation import SampleMessage
from lora_conversations.examples import ASSISTANT, USER, Message
from lora_trainer.data.labels import IGNORED, Row
from lora_trainer.run.held_out import HeldOutPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_trainer.data.chat import Chat

GENERAL_VERSION = 1
"""Figures of different versions of the texts can't be compared."""
MOST_TOKENS = 128
"""A text is cut after so many tokens, so that forty of them stay cheap with every tokenizer: at most 5,120."""


class GeneralChat(NamedTuple):
    """A question and a plain answer to it."""

    question: str
    answer: str


@cache
def passages() -> tuple[str, ...]:
    """The passages, in the order of the file."""
    return tuple(entry["text"] for entry in _content()["passages"])


@cache
def chats() -> tuple[GeneralChat, ...]:
    """The chats, in the order of the file."""
    return tuple(GeneralChat(entry["question"], entry["answer"]) for entry in _content()["chats"])


def _content() -> dict[str, list[dict[str, str]]]:
    return tomllib.loads((files("lora_trainer.data") / "general.toml").read_text(encoding="utf-8"))


def general_rows(chat: Chat, tokenizer: PreTrainedTokenizerBase, most_tokens: int = MOST_TOKENS) -> list[Row]:
    """All texts as rows of at most `most_tokens` tokens; one of which nothing would be measured is left out."""
    rows = [_passage_row(tokenizer, passage) for passage in passages()]
    for question, answer in chats():
        prompt, learned = chat.continuation([Message(USER, question)], [Message(ASSISTANT, answer)])
        rows.append(Row([*prompt, *learned], [*[IGNORED] * len(prompt), *learned], answers=1))
    cut = (Row(row.input_ids[:most_tokens], row.labels[:most_tokens], row.answers) for row in rows)
    return [row for row in cut if any(label != IGNORED for label in row.labels)]


def _passage_row(tokenizer: PreTrainedTokenizerBase, passage: str) -> Row:
    """The passage as the base has learned such text: with what its tokenizer puts in front. Nothing predicts that."""
    ids = list(tokenizer(passage)["input_ids"])
    return Row(ids, [IGNORED, *ids[1:]], answers=1)


def general_prompts(chat: Chat, most: int) -> list[HeldOutPrompt]:
    """The questions of up to `most` chats, as a server renders them: for trainings that hold nothing out."""
    return list(_prompts(chat, chats()[:most]))


def _prompts(chat: Chat, chosen: Sequence[GeneralChat]) -> Iterator[HeldOutPrompt]:
    for question, answer in chosen:
        prompt, _ = chat.continuation([Message(USER, question)], [Message(ASSISTANT, answer)])
        yield HeldOutPrompt(messages=[SampleMessage(role=USER, content=question)], ids=prompt, reference=answer)
