"""Direct preference optimization (arXiv:2305.18290): of two answers, the better one shall become more probable.

The loss of a pair is -log σ(β · ((log π(chosen) - log π_ref(chosen)) - (log π(rejected) - log π_ref(rejected)))). It is
that of TRL's `DPOTrainer` with its defaults (a test compares them), which can't be used itself: it pads where rows can
be packed, and keeps the reference in a cache of its own instead of the checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import logsigmoid
from typing_extensions import override

from lora_trainer.data.chat import Row
from lora_trainer.data.items import Pair
from lora_trainer.data.preferences import read_pairs
from lora_trainer.recipe.methods.method import Method
from lora_trainer.recipe.preferences import PreferenceTrainer


class PairTrainer(PreferenceTrainer):
    """The two answers of a pair share a forward pass; the loss is the mean over the pairs of a step."""

    @staticmethod
    @override
    def rows_of(item: Pair) -> tuple[Row, ...]:
        """The better answer, then the worse."""
        return (item.chosen, item.rejected)

    compared_rows = rows_of

    @classmethod
    @override
    def measured_rows(cls, item: Pair) -> tuple[Row, ...]:
        """The better answer."""
        return (item.chosen,)

    @override
    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The pairs' losses, summed up and divided by the number of pairs in the step."""
        amount = self.amount(inputs) if num_items_in_batch is None else num_items_in_batch
        reference = inputs.pop("reference")
        rewards = self.beta * (self.row_log_probs(model, inputs).view_as(reference) - reference)
        self.note(rewards)
        chosen, rejected = rewards.unbind(dim=1)
        return -logsigmoid(chosen - rejected).sum() / amount

    @staticmethod
    @override
    def scores(*outcomes: torch.Tensor) -> dict[str, float]:
        """The mean difference of the two rewards, and how often the better answer has the higher one."""
        chosen, rejected = outcomes[0].unbind(dim=1)
        return {
            "reward_margin": (chosen - rejected).mean().item(),
            "reward_accuracy": (chosen > rejected).float().mean().item(),
        }


METHOD = Method(
    read=read_pairs,
    trainer=PairTrainer,
    rows_of_item=2,
    learns="by DPO, on pairs of a better and a worse answer to the same prompt",
    settings=frozenset({"beta"}),
    unit="pair",
    loss_unit="nats per pair",
)
