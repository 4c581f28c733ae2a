"""What methods share that compare the adapter with a reference: the model as it was before the first step.

The reference is the base with the adapter off, or the earlier adapter with which the training began. How probable it
finds each answer is computed once, before the first step, and kept with each checkpoint: a training that resumes goes
on with the same numbers. So there is never a second model in memory.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from typing_extensions import override

from lora_contract.hyperparameters import DEFAULT_BETA
from lora_trainer.data.chat import Row
from lora_trainer.recipe.steps import StepTrainer

REFERENCE_NAME = "reference.safetensors"
_KEY = "log_probs"
_REFERENCE = "reference"


class PreferenceTrainer(StepTrainer):
    """Learns from how much more probable an answer is than under the reference.

    A batch has the key `reference`: log-probabilities of the shape (items, compared rows). The reward of an answer is
    `beta` times the difference to them, in nats.
    """

    reference: torch.Tensor
    """The reference's log-probability of each compared row of each item, in fp32 and main memory; `begin` sets it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        chosen = self.parameters.beta
        self.beta = DEFAULT_BETA if chosen is None else chosen
        self._outcomes: list[tuple[torch.Tensor, ...]] = []
        """Of each forward pass of the present step or evaluation: what `scores` makes figures of."""

    @staticmethod
    @abstractmethod
    def compared_rows(item: Any) -> tuple[Row, ...]:
        """The rows of an item whose log-probabilities the reference must know: as many for each item."""

    @staticmethod
    @abstractmethod
    def scores(*outcomes: torch.Tensor) -> dict[str, float]:
        """`reward_margin` and `reward_accuracy` of what `note` was given, joined over all passes."""

    @staticmethod
    @override
    def amount(batch: dict[str, Any]) -> torch.Tensor:
        """The number of items, each of which counts the same."""
        return torch.tensor(float(len(batch[_REFERENCE])))

    @override
    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        """The base class's batch, with the reference's log-probabilities."""
        return {**super().collate(indices), _REFERENCE: self.reference[list(indices)]}

    @override
    def begin(self, checkpoint: Path | None) -> None:
        """Take the reference's log-probabilities from the checkpoint, or compute them.

        Without a checkpoint the adapter must be as it is before the first step.
        """
        if checkpoint is not None:
            self.reference = load_file(checkpoint / REFERENCE_NAME)[_KEY]
            return
        with nullcontext() if self.continues else self.model.disable_adapter():
            columns = zip(*(self.compared_rows(item) for item in self.items), strict=True)
            self.reference = torch.stack([self._log_probs_of(column) for column in columns], dim=1)

    @override
    def save_beside(self, checkpoint: Path) -> None:
        """Save the reference's log-probabilities."""
        save_file({_KEY: self.reference}, checkpoint / REFERENCE_NAME)

    def _log_probs_of(self, rows: Sequence[Row]) -> torch.Tensor:
        """How probable the model finds one row of each item, without gradients; shape (items)."""
        passes = self.passes_over(range(len(rows)))
        parts = {}
        with self.judging():
            for number in self.ranks.numbers(len(passes)):
                batch = self._prepare_inputs(self.lay_out([rows[index] for index in passes[number]]))
                parts[number] = self.row_log_probs(self.model, batch).cpu()
        found = torch.empty(len(rows))
        for chosen, part in zip(passes, self.ranks.union(parts), strict=True):
            found[chosen] = part
        return found

    def note(self, *outcomes: torch.Tensor) -> None:
        """Keep what a forward pass found for the figures of the step."""
        self._outcomes.append(tuple(outcome.detach() for outcome in outcomes))

    @override
    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """The base class's step, whose rewards are then part of what is logged."""
        self._outcomes = []
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._log_scores("train", [found for part in self.ranks.gather(self._noted()) for found in part])
        return loss

    @override
    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """The base class's result; the rewards of what is held out are part of what is logged."""
        self._outcomes = []
        output = super().evaluation_loop(*arguments, **options)
        self._log_scores("eval", self.over_held_out(self._noted()))
        return output

    def _noted(self) -> list[tuple[torch.Tensor, ...]]:
        """What `note` was given, in main memory where other processes shall have it, too."""
        if self.ranks.count == 1:
            return self._outcomes
        return [tuple(part.cpu() for part in outcome) for outcome in self._outcomes]

    def _log_scores(self, mode: str, outcomes: list[tuple[torch.Tensor, ...]]) -> None:
        joined = [torch.cat(parts) for parts in zip(*outcomes, strict=True)]
        for name, value in self.scores(*joined).items():
            self._metrics[mode][name] = [value]  # the trainer logs the mean of each list
