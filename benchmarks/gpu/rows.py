"""What the speed is measured on: rows of one length, so that figures can be laid beside those of others."""

from __future__ import annotations

import random

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lora_trainer.data.chat import Row


def random_rows(count: int, tokens: int, vocabulary: int) -> list[Row]:
    """Examples of `tokens` random tokens each, all of them learned, as in the published figures."""
    chance = random.Random(0)
    rows = []
    for _ in range(count):
        ids = [chance.randrange(10, vocabulary) for _ in range(tokens)]
        rows.append(Row(ids, ids, 1))
    return rows


def small_tokenizer() -> PreTrainedTokenizerBase:
    """Enough of a tokenizer for a trainer whose rows are tokens already."""
    raw = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1, "<unknown>": 2}, unk_token="<unknown>"))
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")
