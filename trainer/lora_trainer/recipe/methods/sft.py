"""Supervised fine-tuning: the answers of conversations are learned, token by token."""

from __future__ import annotations

from typing import Any

import torch
from typing_extensions import override

from lora_trainer.data.chat import IGNORED, Row
from lora_trainer.data.rows import prepare_data
from lora_trainer.recipe.methods.method import Method
from lora_trainer.recipe.steps import StepTrainer


class AnswerTrainer(StepTrainer):
    """The loss is the mean of the learned tokens' negative log-probabilities."""

    @staticmethod
    @override
    def rows_of(item: Row) -> tuple[Row, ...]:
        """The item, which is a row."""
        return (item,)

    @staticmethod
    @override
    def amount(batch: dict[str, Any]) -> torch.Tensor:
        """The number of learned tokens; see `learned_tokens`."""
        return learned_tokens(batch)


def learned_tokens(batch: dict[str, Any]) -> torch.Tensor:
    """On how many tokens of a batch the loss is computed; a scalar.

    `batch["labels"]` has the shape (rows, tokens). The first token of a row is never predicted, so it does not count.
    """
    labels: torch.Tensor = batch["labels"]
    return labels[..., 1:].ne(IGNORED).sum()


METHOD = Method(
    read=prepare_data,
    trainer=AnswerTrainer,
    rows_of_item=1,
    learns="on the assistant's answers only",
    unit="answer",
    loss_unit="nats per token",
)
