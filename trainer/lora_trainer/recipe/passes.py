"""Forward passes over rows of tokens: how they are laid out, and how probable the model finds each row.

What every trainer shares that has to do with rows alone, whatever is learned from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from trl import SFTTrainer

from lora_contract.batches import BatchShape, forward_passes
from lora_trainer.data.chat import Row
from lora_trainer.recipe.comparison import RowFigures
from lora_trainer.recipe.ranks import ALONE, Ranks
from lora_trainer.recipe.stopping import StepInterruptedError

IDLE = "idle"
"""Marks a batch that learns nothing: see `PassTrainer.gather_layers`."""
_NOT_OF_DECODER = ("labels", IDLE)


class PassTrainer(SFTTrainer):
    """TRL's trainer, which can judge rows: forward passes without a step."""

    model: PeftModel
    """Declared as optional by transformers; the constructor requires it."""
    shape: BatchShape
    micro_batch: int
    """Most rows of a forward pass, as the shape counts them."""
    ranks: Ranks = ALONE
    """The processes that train together."""
    stop_requested: Callable[[], bool] = staticmethod(lambda: False)
    """Whether the training shall stop. Asked before each forward pass of a step: a whole step may take minutes."""

    def lay_out(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Rows as one forward pass: packed one after the other, or padded to the length of the longest."""
        return self.data_collator([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])

    @property
    def is_packed(self) -> bool:
        """Whether a forward pass is one long row, in which the rows follow each other."""
        return self.shape.packed

    def log_probs(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """The log-probability of each learned token but a row's first, 0 for all other tokens; (rows, tokens - 1).

        The logits are computed by tiles, so they never take memory as a whole. `inputs` has nothing but what the model
        takes. The tokens of a training step are counted for the throughput.
        """
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        if self.model.training:
            present = inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["input_ids"].numel()
            self._total_train_tokens += int(present)
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return torch.as_tensor(outputs.log_probs)

    def end_if_asked(self) -> None:
        """End a step, or a measurement, in the middle if a stop was requested.

        Raises:
            StepInterruptedError: it was.
        """
        if self.stop_requested():
            raise StepInterruptedError

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Forward passes without gradients, dropout or recomputing; training goes on as before afterwards."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.compute_loss_context_manager(), self.accelerator.autocast():
                yield
        finally:
            self.model.train(was_training)

    def gather_layers(self, batch: dict[str, Any]) -> None:
        """A pass that learns nothing, beside those of other processes: it gathers each layer when they do."""
        self.model.train()
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            hidden: Any = self.gather_layers_once(batch)
        hidden.backward(torch.zeros_like(hidden))

    def gather_layers_once(self, batch: dict[str, Any]) -> torch.Tensor:
        """The forward half of such a pass, beside forward passes that have no backward pass; the last hidden states.

        `batch` is one that `lay_out` gave; what the model does not take is left aside.
        """
        inputs = self._prepare_inputs({name: value for name, value in batch.items() if name not in _NOT_OF_DECODER})
        decoder: Any = self.model.get_base_model().base_model
        hidden: torch.Tensor = decoder(**inputs, use_cache=False).last_hidden_state
        return hidden

    def row_sums(self, batch: dict[str, Any], tokens: torch.Tensor) -> torch.Tensor:
        """The sum over the tokens of each row; shape (rows).

        `tokens` is of a forward pass over `batch`: a number for each token but a row's first, as `log_probs` gives.
        """
        if not self.is_packed:
            return tokens.sum(dim=1)
        # One long row: `cu_seq_lens_q` has the places at which the rows in it begin, and its end. A row's first token
        # has no log-probability; that of the very first is put back, so that the lengths fit.
        lengths = batch["cu_seq_lens_q"].diff()
        return torch.segment_reduce(torch.nn.functional.pad(tokens[0], (1, 0)), "sum", lengths=lengths)

    def row_log_probs(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        """The log-probability of the learned tokens of each row together, in nats; shape (rows)."""
        return self.row_sums(batch, self.log_probs(model, batch).float())

    def measure(self, rows: Sequence[Row]) -> list[RowFigures]:
        """How well the model, as it is now, predicts each row. Weights of tokens are left aside: each counts the same.

        A pass has no more tokens than one of the training, and needs less memory: nothing is kept for a backward pass.
        Layers that torch.compile would compile are not: with the adapter off they are other code, and to compile that
        takes longer than to run it.

        Raises:
            StepInterruptedError: a stop was requested.
        """
        plain = [Row(row.input_ids, row.labels, row.answers) for row in rows]
        passes = self._measuring_passes([len(row.input_ids) for row in plain])
        figures: dict[int, list[RowFigures]] = {}
        with torch.compiler.set_stance("force_eager"), self.judging():
            for number in self.ranks.numbers(len(passes)):
                self.end_if_asked()
                figures[number] = self._figures_of([plain[index] for index in passes[number]])
        found: dict[int, RowFigures] = {}
        for chosen, of_pass in zip(passes, self.ranks.union(figures), strict=True):
            found.update(zip(chosen, of_pass, strict=True))
        return [found[index] for index in range(len(plain))]

    def _measuring_passes(self, lengths: Sequence[int]) -> list[list[int]]:
        if not lengths:
            return []
        room = self.micro_batch * self.shape.row_tokens
        at_once = self.micro_batch if self.is_packed else max(1, room // max(lengths))
        return forward_passes(range(len(lengths)), lengths, self.shape, at_once)

    def _figures_of(self, rows: Sequence[Row]) -> list[RowFigures]:
        batch = self._prepare_inputs(self.lay_out(rows))
        outputs = self.model(**batch, use_cache=False, fused_lm_head=True)
        parts = (-outputs.log_probs, outputs.is_top1, outputs.label_mask)
        losses, correct, tokens = (self.row_sums(batch, part.float()).tolist() for part in parts)
        return [RowFigures(*values) for values in zip(losses, map(int, correct), map(int, tokens), strict=True)]


def pass_tokens(rows: Sequence[Row], *, packed: bool) -> int:
    """How many tokens rows take in a forward pass; those that are not packed are padded."""
    lengths = [len(row.input_ids) for row in rows]
    return sum(lengths) if packed else len(lengths) * max(lengths)
