"""Kahneman-Tversky optimization (arXiv:2402.01306): good answers shall become more probable, bad ones less.

The loss of a good answer is w_d · (1 - σ(β · (r - z))), that of a bad one w_u · (1 - σ(β · (z - r))). Here r is
log π(answer) - log π_ref(answer), and z estimates how far the model has moved from the reference: the mean of the same
difference over answers to other prompts, and at least 0. It is the loss of TRL's `KTOTrainer` (a test compares them),
which can't be used itself: it estimates z in each forward pass, so that a step would depend on how memory splits it.
Here z is that of the whole step, and in an evaluation that of all that is held out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.nn.functional import sigmoid
from typing_extensions import override

from lora_trainer.data.chat import Row
from lora_trainer.data.items import RatedAnswer
from lora_trainer.data.preferences import answer_weights, read_ratings
from lora_trainer.recipe.methods.method import Method
from lora_trainer.recipe.passes import IDLE, pass_tokens
from lora_trainer.recipe.preferences import PreferenceTrainer
from lora_trainer.recipe.steps import TrainingBatches

_OTHER, _GOOD = "other", "good"


class RatingTrainer(PreferenceTrainer):
    """The loss is the mean over the rated answers of a step."""

    def __init__(self, *, batches: TrainingBatches, **options: Any) -> None:
        super().__init__(batches=batches, **options)
        good = [item.good for item in batches.train if isinstance(item, RatedAnswer)]
        self.weights = answer_weights(sum(good), len(good) - sum(good), self.parameters)
        """How much a good and a bad answer count."""
        self._divergence = torch.zeros(())

    @staticmethod
    @override
    def rows_of(item: RatedAnswer) -> tuple[Row, ...]:
        """The answer with its prompt."""
        return (item.row,)

    @staticmethod
    @override
    def compared_rows(item: RatedAnswer) -> tuple[Row, ...]:
        """The answer, and the answer to another prompt."""
        return (item.row, item.other)

    @classmethod
    @override
    def measured_rows(cls, item: RatedAnswer) -> tuple[Row, ...]:
        """The answer, if it is good."""
        return (item.row,) if item.good else ()

    @classmethod
    @override
    def tokens_of(cls, item: RatedAnswer, *, packed: bool) -> int:
        """Those of the longer of its two rows, which go through the model one after the other."""
        return max(pass_tokens([row], packed=packed) for row in cls.compared_rows(item))

    @override
    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        """The base class's batch, with the ratings and with the answers to other prompts as a batch of their own."""
        items = [item for index in indices if isinstance(item := self.items[index], RatedAnswer)]
        return {
            **super().collate(indices),
            _GOOD: torch.tensor([item.good for item in items]),
            _OTHER: self.lay_out([item.other for item in items]),
        }

    @override
    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """The base class's step, after the divergence was estimated from all its passes."""
        parts = self.ranks.gather(self._differences(self._asking(inputs)))
        self._divergence = self._estimate([found for part in parts for found in part])
        return super().training_step(model, inputs, num_items_in_batch)

    @override
    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """The base class's result, after the divergence was estimated from all that is held out."""
        self._divergence = self._estimate(self.over_held_out(self._differences(self._held_out())))
        return super().evaluation_loop(*arguments, **options)

    def _asking(self, passes: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        for batch in passes:
            self.end_if_asked()
            yield batch

    def _held_out(self) -> Iterable[dict[str, Any]]:
        for indices in self._eval_sampler:
            # A stop may interrupt the estimate as it interrupts the evaluation itself.
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            yield self.collate(indices)

    def _differences(self, batches: Iterable[dict[str, Any]]) -> list[torch.Tensor]:
        """For each pass, how much more probable its other answers are than under the reference, in nats.

        Where the base is sharded, a process with fewer passes than others gathers layers beside them.
        """
        differences = []
        with self.judging():
            for batch in batches:
                if IDLE in batch:
                    self.gather_layers_once(batch)
                    continue
                other, reference = self._prepare_inputs(batch[_OTHER]), batch["reference"][:, 1]
                found = self.row_log_probs(self.model, other)
                differences.append(found - reference.to(found.device))
        return differences if self.ranks.count == 1 else [part.cpu() for part in differences]

    def _estimate(self, differences: list[torch.Tensor]) -> torch.Tensor:
        """How far the model has moved from the reference, in nats, at least 0; a scalar without a gradient."""
        return torch.cat(differences).mean().clamp(min=0).to(self.args.device)

    @override
    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The answers' losses, summed up and divided by the number of answers in the step."""
        amount = self.amount(inputs) if num_items_in_batch is None else num_items_in_batch
        reference, good = inputs.pop("reference")[:, 0], inputs.pop(_GOOD)
        inputs.pop(_OTHER)
        moved = self.row_log_probs(model, inputs) - reference
        self.note(self.beta * moved, good)
        desirable, undesirable = self.weights
        distance = torch.where(good, moved - self._divergence, self._divergence - moved)
        weights = torch.where(good, desirable, undesirable)
        return (weights * (1 - sigmoid(self.beta * distance))).sum() / amount

    @staticmethod
    @override
    def scores(*outcomes: torch.Tensor) -> dict[str, float]:
        """By how much the mean reward of good answers is higher, and how many rewards have the right sign.

        There is no margin where all answers are good, or all bad.
        """
        rewards, good = outcomes
        found = {"reward_accuracy": ((rewards > 0) == good).float().mean().item()}
        if good.any() and not good.all():
            found["reward_margin"] = (rewards[good].mean() - rewards[~good].mean()).item()
        return found


METHOD = Method(
    read=read_ratings,
    trainer=RatingTrainer,
    rows_of_item=1,
    learns="by KTO, on answers that were rated good or bad",
    settings=frozenset({"beta", "desirable_weight", "undesirable_weight"}),
    unit="rated answer",
    loss_unit="per answer",
)
