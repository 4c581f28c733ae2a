"""Training in whole optimizer steps: what every method shares. TRL's `SFTTrainer`, with steps for batches.

A method (`lora_trainer.recipe.methods`) makes items out of a dataset and subclasses `StepTrainer`: it says which rows
of tokens an item has, and what the loss over them is. An item is what `batch_size` counts: an answer, or a pair of
answers. Steps, forward passes, checkpoints, schedule and optimizer are the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase, SchedulerType
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig
from typing_extensions import override

from lora_contract.batches import BatchShape, forward_passes, share_step
from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.data.chat import Row
from lora_trainer.data.items import Item
from lora_trainer.models.hardware import Hardware
from lora_trainer.models.loading import Lora
from lora_trainer.models.optimizer import PLAIN, Optimizer
from lora_trainer.recipe.callbacks import EvaluationInterruptedError, RunCallback
from lora_trainer.recipe.passes import IDLE, PassTrainer, pass_tokens
from lora_trainer.recipe.ranks import ALONE, Ranks
from lora_trainer.recipe.samplers import PassSampler, StepSampler
from lora_trainer.recipe.schedule import rate_share, warm_up_steps

_MAX_GRADIENT_NORM = 1.0

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingBatches:
    """The items of a training, and how they are shared out among optimizer steps and forward passes."""

    train: Sequence[Item]
    validation: Sequence[Item]
    shape: BatchShape
    micro_batch: int
    """Most rows of a forward pass, as the shape counts them: a row is an item, or several that are packed."""


class StepTrainer(PassTrainer, ABC):
    """TRL's trainer, for which one batch of the data loader is a whole optimizer step.

    A step is a list of forward passes. Their number may differ from step to step; it changes how much memory the
    step takes, but not its result: the loss is a mean over what the step learns, however that is spread over the
    passes.

    Evaluations leave the random states as they were. Otherwise a run that resumes between a step and its evaluation
    would go on with other numbers: each evaluation draws a seed from the generator that dropout uses.
    """

    shards_base = False
    """Whether each process holds only a part of the base."""
    continues = False
    """Whether the training began with an earlier adapter."""

    def __init__(
        self, *, batches: TrainingBatches, parameters: Hyperparameters, ranks: Ranks = ALONE, **options: Any
    ) -> None:
        self.ranks = ranks
        self.items = [*batches.train, *batches.validation]
        """Those to train on, then those held out."""
        # TRL asks for datasets and looks at their first row. What is trained on comes from `items`.
        first = as_dataset(self.rows_of(self.items[0]))
        super().__init__(train_dataset=first, eval_dataset=first if batches.validation else None, **options)
        self.parameters = parameters
        self.shape, self.micro_batch = batches.shape, batches.micro_batch
        self._lengths = [self.tokens_of(item, packed=batches.shape.packed) for item in self.items]
        trained = len(batches.train)
        answers = [item.answers for item in batches.train]
        steps = self.shape.steps_per_epoch
        self._train_sampler = StepSampler(answers, self._lengths[:trained], steps, self.args.seed)
        held_out = self.passes_over(range(trained, len(self.items)))
        self._held_out_numbers = ranks.numbers(len(held_out))
        """Which of the forward passes over what is held out this process computes."""
        self._eval_sampler = PassSampler([held_out[number] for number in self._held_out_numbers])
        self._eval_losses: list[tuple[float, float]] = []
        """Of each forward pass of the current evaluation: mean loss, and over how much it is a mean."""

    @staticmethod
    @abstractmethod
    def rows_of(item: Any) -> tuple[Row, ...]:
        """The rows of tokens of one item, which share a forward pass."""

    @classmethod
    def tokens_of(cls, item: Any, *, packed: bool) -> int:
        """How many tokens an item takes in a forward pass."""
        return pass_tokens(cls.rows_of(item), packed=packed)

    @classmethod
    def measured_rows(cls, item: Any) -> tuple[Row, ...]:
        """The rows of an item whose answers are good: those on which base and tuned model are compared."""
        return cls.rows_of(item)

    @staticmethod
    @abstractmethod
    def amount(batch: dict[str, Any]) -> torch.Tensor:
        """Over how much the loss of a batch is a mean, such as its number of learned tokens; a scalar."""

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        """One forward pass over the items with these indices, in TRL's form: `input_ids`, `labels` and positions."""
        return self.lay_out([row for index in indices for row in self.rows_of(self.items[index])])

    def begin(self, checkpoint: Path | None) -> None:
        """Prepare what must be known before the first step; `checkpoint` is the folder of the one to resume from."""

    def save_beside(self, checkpoint: Path) -> None:
        """Save into a checkpoint's folder what `begin` would otherwise have to compute again."""

    def passes_over(self, indices: Sequence[int]) -> list[list[int]]:
        """The items with these indices, shared out among forward passes."""
        lengths = [self._lengths[index] for index in indices]
        passes = forward_passes(range(len(indices)), lengths, self.shape, self.micro_batch)
        return [[indices[position] for position in chosen] for chosen in passes]

    @override
    def get_train_dataloader(self) -> DataLoader[Any]:
        """Gives optimizer steps, each a list of forward passes."""
        return self._prepared_loader(self._train_sampler, self._collate_step)

    @override
    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Gives the forward passes over the held-out items."""
        return self._prepared_loader(self._eval_sampler, self.collate)

    def _prepared_loader(self, sampler: Sampler[list[int]], collate: Callable[[list[int]], Any]) -> DataLoader[Any]:
        indices = cast("Any", range(len(self.items)))  # has a length and an item for each index, as a loader wants
        loader: DataLoader[Any] = DataLoader(
            indices, batch_sampler=sampler, collate_fn=collate, pin_memory=self.args.dataloader_pin_memory
        )
        return cast("DataLoader[Any]", self.accelerator.prepare(loader))

    def _collate_step(self, indices: list[int]) -> list[dict[str, Any]]:
        """The forward passes of a step that this process computes; none where there are fewer items than processes."""
        if self.ranks.count == 1:
            return [self.collate(chosen) for chosen in self.passes_over(indices)]
        shares = share_step(indices, self._lengths, self.ranks.count)
        passes = [self.passes_over(share) if share else [] for share in shares]
        own = [self.collate(chosen) for chosen in passes[self.ranks.rank]]
        if not self.shards_base:
            return own
        # Each layer is gathered from all processes, so all must compute as many passes.
        shortest = self.rows_of(self.items[min(indices, key=lambda index: self._lengths[index])])[:1]
        return own + [{**self.lay_out(shortest), IDLE: True}] * (max(map(len, passes)) - len(own))

    def over_held_out(self, found: Sequence[T]) -> list[T]:
        """What all processes found in their forward passes over what is held out, in the order of one process."""
        return self.ranks.union(dict(zip(self._held_out_numbers, found, strict=True)))

    @override
    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """The next `num_batches` steps, and over how much their loss is a mean (see `amount`).

        Raises:
            StepInterruptedError: a stop was requested. Where it has interrupted the evaluation before, the other
                processes still wait for its losses, and would take what is gathered here for them.
        """
        self.end_if_asked()
        steps = [next(epoch_iterator) for _ in range(num_batches)]
        amounts = [self.amount(batch) for step in steps for batch in step if IDLE not in batch]
        total = sum(amounts[1:], start=amounts[0]) if amounts else torch.zeros(())
        parts = self.ranks.gather(total)  # of the whole step, whoever computes its parts
        return steps, sum(parts[1:], start=parts[0]).to(device)

    @override
    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward for each pass of a step, which is what `inputs` is here; the step's loss, a scalar.

        Raises:
            StepInterruptedError: a stop was requested; the gradients are those of a part of the step.
        """
        passes: list[dict[str, torch.Tensor]] = inputs
        train_on: Callable[..., torch.Tensor] = super().training_step  # TRL's has no types
        loss = torch.zeros((), device=self.args.device)
        tokens = self._total_train_tokens
        self._draw_apart()
        for batch in passes:
            self.end_if_asked()
            if IDLE in batch:
                self.gather_layers(batch)
            else:
                loss = loss + train_on(model, batch, num_items_in_batch)
        return self._add_up(loss, tokens)

    def _draw_apart(self) -> None:
        """Let dropout draw other numbers than in the other processes, and the same ones in a step computed anew."""
        if not self.ranks.leads:
            torch.manual_seed(hash((self.args.seed, self.state.global_step, self.ranks.rank)) % 2**63)

    def _add_up(self, loss: torch.Tensor, tokens_before: int) -> torch.Tensor:
        """The loss of the whole step, whose gradients and tokens become those of all processes together."""
        if self.ranks.count == 1:
            return loss
        self.ranks.add_up_gradients([p for p in self.model.parameters() if p.requires_grad])
        parts = self.ranks.gather((loss.item(), int(self._total_train_tokens) - int(tokens_before)))
        self._total_train_tokens = tokens_before + sum(tokens for _, tokens in parts)
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss.new_tensor(sum(part for part, _ in parts))

    @override
    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        """Only the leader saves: all it needs to resume is the same in every process."""
        if self.ranks.leads:
            save: Callable[..., None] = super()._save_checkpoint  # TRL's has no types
            save(*arguments, **options)

    @override
    def floating_point_ops(self, inputs: Any) -> int:
        """0: counting them takes time, and nothing here shows them."""
        return 0

    @override
    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """Our own schedule: those of transformers train the first step at a learning rate of 0."""
        optimizer = optimizer or self.optimizer
        assert optimizer is not None  # transformers creates it first
        if self.lr_scheduler is None:
            share = partial(
                rate_share,
                total_steps=num_training_steps,
                warm_up=int(self.args.warmup_steps),
                decay=SchedulerType(self.args.lr_scheduler_type).value,
            )
            self.lr_scheduler = LambdaLR(optimizer, share)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    @override
    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """The base class's metrics; none when a stop interrupted it. Restores the random states afterwards."""
        with torch.random.fork_rng():
            try:
                metrics: dict[str, float] = super().evaluate(*arguments, **options)
            except EvaluationInterruptedError:
                self.model.train()
                return {}
        return metrics

    @override
    def prediction_step(self, model: torch.nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """The base class's result, whose loss is noted with over how much it is a mean."""
        amount = float(self.amount(inputs))
        result = super().prediction_step(model, inputs, *arguments, **options)
        self._eval_losses.append((result[0].item(), amount))
        return result

    @override
    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """The base class's result, with the mean loss over all that is held out.

        transformers takes the mean of the passes' means, in which what a short pass learns counts for more.
        """
        self._eval_losses = []
        output = super().evaluation_loop(*arguments, **options)
        losses = self.over_held_out(self._eval_losses)
        amount = sum(amount for _, amount in losses)
        prefix = options.get("metric_key_prefix", "eval")
        loss = sum(loss * part for loss, part in losses) / (amount or 1)
        return output._replace(metrics={**(output.metrics or {}), f"{prefix}_loss": loss})


def build_trainer(
    kind: type[StepTrainer],
    lora: Lora,
    tokenizer: PreTrainedTokenizerBase,
    batches: TrainingBatches,
    arguments: SFTConfig,
    parameters: Hyperparameters,
    ranks: Ranks = ALONE,
) -> StepTrainer:
    """The trainer of these batches. Casts the weights that train to fp32."""
    trainer = kind(
        model=lora.model,
        args=arguments,
        batches=batches,
        parameters=parameters,
        ranks=ranks,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    # TRL casts LoRA to bf16, where Adam's small updates are lost to rounding. PEFT loads a checkpoint in fp32, so a
    # run that resumes would also differ from one that was never interrupted.
    for parameter in lora.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    ranks.spread_weights(parameter for parameter in lora.model.parameters() if parameter.requires_grad)
    return trainer


def training_arguments(
    parameters: Hyperparameters,
    shape: BatchShape,
    hardware: Hardware,
    checkpoints: Path,
    *,
    trackers: Sequence[str] = (),
    optimizer: Optimizer = PLAIN,
    recompute: bool = True,
) -> SFTConfig:
    """The settings of one training. When to evaluate, save and stop is decided by `RunCallback`."""
    total_steps = shape.total_steps(epochs=parameters.epochs, max_steps=parameters.max_steps)
    return SFTConfig(
        output_dir=str(checkpoints),
        seed=parameters.seed,
        data_seed=parameters.seed,
        # data
        max_length=None,  # every row fits already; TRL would cut the end off
        padding_free=shape.packed,
        gradient_accumulation_steps=1,  # one batch is a whole step, see StepTrainer
        num_train_epochs=parameters.epochs,
        max_steps=total_steps,  # overrides num_train_epochs, even where it is larger
        # optimizer
        optim=optimizer.name,
        learning_rate=parameters.learning_rate,
        weight_decay=parameters.weight_decay,
        warmup_steps=planned_warm_up(parameters, shape),
        lr_scheduler_type=parameters.scheduler,
        max_grad_norm=_MAX_GRADIENT_NORM,
        neftune_noise_alpha=parameters.neftune_noise_alpha,
        router_aux_loss_coef=0.0,  # routers are not trained, so balancing them would only disturb the rest
        # precision and memory
        bf16=hardware.dtype is torch.bfloat16,
        fp16=hardware.dtype is torch.float16,
        use_cpu=not hardware.is_gpu,
        gradient_checkpointing=recompute,
        dataloader_pin_memory=hardware.is_gpu,
        # reports
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would log the loss of a broken step as 0
        report_to=list(trackers),
        disable_tqdm=True,
        eval_strategy="no",
        save_strategy="no",
        save_total_limit=2,
    )


def planned_warm_up(parameters: Hyperparameters, shape: BatchShape) -> int:
    """How many steps of this training are below its full learning rate: the user's choice, or a default."""
    total_steps = shape.total_steps(epochs=parameters.epochs, max_steps=parameters.max_steps)
    return warm_up_steps(total_steps, parameters.warmup_steps)


def as_dataset(rows: Sequence[Row]) -> Dataset:
    """Rows with the columns `input_ids` and `labels`, which TRL takes for tokenised and leaves as they are."""
    return Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]})


def loraplus_optimizer(trainer: StepTrainer, parameters: Hyperparameters) -> torch.optim.Optimizer:
    """The optimizer of LoRA+: the B matrices learn `loraplus_lr_ratio` times as fast (arXiv:2402.12354)."""
    from peft.optimizers import create_loraplus_optimizer

    assert parameters.loraplus_lr_ratio is not None  # the caller checked it
    kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args)
    options = {name: value for name, value in options.items() if name != "lr"}
    return create_loraplus_optimizer(
        trainer.model,
        kind,
        lr=parameters.learning_rate,
        loraplus_lr_ratio=parameters.loraplus_lr_ratio,
        # Not `weight_decay`: PEFT overrides that in each parameter group with this one, whose default is 0.
        loraplus_weight_decay=parameters.weight_decay,
        **options,
    )


def save_last_step(trainer: StepTrainer, callback: RunCallback) -> None:
    """Save a checkpoint of the last whole step, for a training that ended within the next one.

    The part of a step that was computed is discarded, with its gradients and the random numbers that it drew: a
    training that resumes computes the step as if it had not begun. If this process has ended no step, nothing is
    saved: the checkpoint from which it resumed stands.
    """
    step = trainer.state.global_step
    if callback.last_states is None or callback.saved_step == step:
        return
    callback.last_states.restore()
    trainer.model.zero_grad(set_to_none=True)
    # Outside of its loop, transformers has no public method for it.
    save: Callable[..., None] = trainer._save_checkpoint  # noqa: SLF001
    save(trainer.model, trial=None)
    callback.complete_checkpoint(Path(str(trainer.args.output_dir)) / f"checkpoint-{step}", step)
