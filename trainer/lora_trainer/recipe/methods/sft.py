"""Supervised fine-tuning: the answers of conversations are learned, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from lora_trainer.data.chat import IGNORED, Row
from lora_trainer.data.rows import prepare_data
from lora_trainer.recipe.methods.method import Method
from lora_trainer.recipe.steps import StepTrainer

_WEIGHTS = "weights"


class AnswerTrainer(StepTrainer):
    """The loss is the mean of the learned tokens' negative log-probabilities, weighted where the dataset says so."""

    @staticmethod
    @override
    def rows_of(item: Row) -> tuple[Row, ...]:
        """The item, which is a row."""
        return (item,)

    @staticmethod
    @override
    def amount(batch: dict[str, Any]) -> torch.Tensor:
        """The number of learned tokens, or the sum of their weights; see `learned_tokens`."""
        return learned_tokens(batch)

    @override
    def lay_out(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The base class's batch, with the weight of each token where they differ."""
        batch = super().lay_out(rows)
        if any(row.weights is not None for row in rows):
            weights = _lay_out_weights(rows, packed=self.is_packed)
            batch[_WEIGHTS] = weights.masked_fill(batch["labels"] == IGNORED, 0)
        return batch

    @override
    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss; where tokens have weights, its weighted mean. `num_items_in_batch` is what `amount` counts."""
        if _WEIGHTS not in inputs:
            by_trl: Callable[..., torch.Tensor] = super().compute_loss  # it has no types
            return by_trl(model, inputs, return_outputs, num_items_in_batch)
        amount = self.amount(inputs) if num_items_in_batch is None else num_items_in_batch
        weights = inputs.pop(_WEIGHTS)
        log_probs = self.log_probs(model, inputs)
        return -(log_probs * weights[:, 1:]).sum() / amount


def _lay_out_weights(rows: Sequence[Row], *, packed: bool) -> torch.Tensor:
    weights = [torch.tensor(row.weights or [1.0] * len(row.input_ids)) for row in rows]
    return torch.cat(weights)[None] if packed else pad_sequence(weights, batch_first=True)


def learned_tokens(batch: dict[str, Any]) -> torch.Tensor:
    """On how many tokens of a batch the loss is computed, or the sum of their weights; a scalar.

    `batch["labels"]` has the shape (rows, tokens). The first token of a row is never predicted, so it does not count.
    """
    if _WEIGHTS in batch:
        return torch.as_tensor(batch[_WEIGHTS][..., 1:].sum())
    labels: torch.Tensor = batch["labels"]
    return labels[..., 1:].ne(IGNORED).sum()


METHOD = Method(
    read=prepare_data,
    trainer=AnswerTrainer,
    rows_of_item=1,
    learns="on the assistant's answers only",
    settings=frozenset(),
    unit="answer",
    loss_unit="nats per token",
)
