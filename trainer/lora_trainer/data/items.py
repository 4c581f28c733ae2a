"""What an optimizer step is made of: one item for each thing that `batch_size` counts, tokenised."""

from __future__ import annotations

from typing import NamedTuple

from lora_trainer.data.chat import Row


class Pair(NamedTuple):
    """Two answers to one prompt, each as a row with the prompt before it, of which the answer alone is learned."""

    chosen: Row
    rejected: Row
    answers: int = 1
    """How much of `batch_size` the item fills."""


class RatedAnswer(NamedTuple):
    """An answer with its prompt, of which the answer alone is learned, and whether it is good."""

    row: Row
    other: Row
    """The same prompt with an answer to another prompt: what KTO's estimate of the divergence is made of."""
    good: bool
    answers: int = 1
    """How much of `batch_size` the item fills."""


Item = Row | Pair | RatedAnswer
"""Of sft, dpo and kto: each has `answers`."""
