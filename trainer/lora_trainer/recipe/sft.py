"""The recipe: what TRL's `SFTTrainer` is told, and how a training goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedTokenizerBase, SchedulerType
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer
from typing_extensions import override

from lora_contract.batches import BatchShape, forward_passes, share_out
from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.data.chat import IGNORED, Row
from lora_trainer.models.loading import Hardware, Lora
from lora_trainer.models.optimizer import PLAIN, Optimizer, choose_optimizer
from lora_trainer.recipe.callbacks import EvaluationLeftError, RunCallback
from lora_trainer.recipe.schedule import rate_share, warm_up_steps
from lora_trainer.run.task import Task

_MAX_GRADIENT_NORM = 1.0


class StepSampler(Sampler[list[int]]):
    """The examples of each optimizer step, epoch by epoch; the same after a resume."""

    batch_size = 1
    """What accelerate counts with; otherwise it says in the log, for each forward pass, that it can't."""

    def __init__(self, rows: Sequence[Row], steps: int, seed: int) -> None:
        self._answers = [row.answers for row in rows]
        self._lengths = [len(row.input_ids) for row in rows]
        self._steps = steps
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        return iter(share_out(self._answers, self._lengths, self._steps, seed=f"{self._seed}:{self._epoch}"))


class PassSampler(Sampler[list[int]]):
    """The same forward passes each time."""

    batch_size = 1

    def __init__(self, passes: list[list[int]]) -> None:
        self._passes = passes

    def __len__(self) -> int:
        return len(self._passes)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._passes)


class StepTrainer(SFTTrainer):
    """TRL's trainer, for which one batch of the data loader is a whole optimizer step.

    A step is a list of forward passes: their number may differ from step to step, and is nobody's concern but
    the memory's. The loss is the mean over the step's answer tokens, however they are spread over the passes.
    The random states don't depend on when the held-out examples are looked at: each evaluation draws a seed from
    the generator that dropout uses, so a run that resumes between a step and its evaluation would go on differently.
    """

    model: PeftModel
    """transformers' type allows for none; the constructor was given one."""

    def __init__(
        self, *, train: Sequence[Row], validation: Sequence[Row], shape: BatchShape, micro_batch: int, **options: Any
    ) -> None:
        super().__init__(
            train_dataset=as_dataset(train), eval_dataset=as_dataset(validation) if validation else None, **options
        )
        self._sampler = StepSampler(train, shape.steps_per_epoch, self.args.seed)
        lengths = [len(row.input_ids) for row in validation]
        self._judged = PassSampler(forward_passes(range(len(lengths)), lengths, shape, micro_batch))
        self._shape = shape
        self._micro_batch = micro_batch
        self._judged_loss: list[tuple[float, int]] = []

    @override
    def get_train_dataloader(self) -> DataLoader[Any]:
        """Steps, each a list of forward passes."""
        return self._prepared_loader(
            self.train_dataset,
            batch_sampler=self._sampler,
            collate_fn=self._collate_step,
        )

    @override
    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The held-out examples, by forward passes."""
        return self._prepared_loader(self.eval_dataset, batch_sampler=self._judged, collate_fn=self.data_collator)

    def _prepared_loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        # transformers allows for streams and for no dataset; this trainer has made its datasets from rows.
        rows = cast("TorchDataset[Any]", dataset)
        loader: DataLoader[Any] = DataLoader(rows, pin_memory=self.args.dataloader_pin_memory, **options)
        return cast("DataLoader[Any]", self.accelerator.prepare(loader))

    def _collate_step(self, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        lengths = [len(example["input_ids"]) for example in examples]
        passes = forward_passes(range(len(examples)), lengths, self._shape, self._micro_batch)
        return [self.data_collator([examples[index] for index in chosen]) for chosen in passes]

    @override
    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """The steps, and how many answer tokens the loss is the mean of."""
        steps = [next(epoch_iterator) for _ in range(num_batches)]
        tokens = sum((learned_tokens(batch) for step in steps for batch in step), start=torch.tensor(0))
        return steps, tokens.to(device)

    @override
    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward for each pass of the step; the step's loss."""
        passes: list[dict[str, torch.Tensor]] = inputs
        train_on: Callable[..., torch.Tensor] = super().training_step  # without types in TRL
        losses = (train_on(model, batch, num_items_in_batch) for batch in passes)
        return sum(losses, start=torch.zeros((), device=self.args.device))

    @override
    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: nothing here shows it."""
        return 0

    @override
    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """Warm-up and decay without a step at rate 0, which transformers' begin with."""
        optimizer = optimizer or self.optimizer
        assert optimizer is not None  # transformers makes it first
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
        """As ever, with the random states put back afterwards; without a result when a stop was requested."""
        with torch.random.fork_rng():
            try:
                metrics: dict[str, float] = super().evaluate(*arguments, **options)
            except EvaluationLeftError:
                self.model.train()
                return {}
        return metrics

    @override
    def prediction_step(self, model: torch.nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """As ever; the loss is kept with the number of its tokens."""
        tokens = int(learned_tokens(inputs))
        judged = super().prediction_step(model, inputs, *arguments, **options)
        self._judged_loss.append((judged[0].item(), tokens))
        return judged

    @override
    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """As ever, with the mean over all held-out answer tokens instead of the mean of the passes' means."""
        self._judged_loss = []
        output = super().evaluation_loop(*arguments, **options)
        tokens = sum(tokens for _, tokens in self._judged_loss)
        prefix = options.get("metric_key_prefix", "eval")
        loss = sum(loss * n for loss, n in self._judged_loss) / max(tokens, 1)
        return output._replace(metrics={**(output.metrics or {}), f"{prefix}_loss": loss})


def learned_tokens(batch: dict[str, Any]) -> torch.Tensor:
    """How many tokens of a batch the loss is computed on: the first of a sequence has nothing before it."""
    labels: torch.Tensor = batch["labels"]
    return labels[..., 1:].ne(IGNORED).sum()


def build_trainer(
    lora: Lora,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Row],
    validation: Sequence[Row],
    shape: BatchShape,
    micro_batch: int,
    task: Task,
    hardware: Hardware,
    callback: RunCallback,
    reporters: Sequence[str] = (),
) -> StepTrainer:
    """The trainer, ready for its first step."""
    arguments = training_arguments(
        task.hyperparameters,
        shape,
        hardware,
        task.checkpoints,
        reporters,
        optimizer=choose_optimizer(lora.trainable, is_gpu=hardware.is_gpu),
    )
    trainer = trainer_for(lora, tokenizer, train, validation, shape, micro_batch, arguments)
    trainer.add_callback(callback)
    callback.evaluate = trainer.evaluate
    if task.hyperparameters.loraplus_lr_ratio is not None:
        trainer.optimizer = _loraplus_optimizer(trainer, task.hyperparameters)
    return trainer


def trainer_for(
    lora: Lora,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Row],
    validation: Sequence[Row],
    shape: BatchShape,
    micro_batch: int,
    arguments: SFTConfig,
) -> StepTrainer:
    """TRL's trainer over prepared rows, with LoRA in fp32."""
    trainer = StepTrainer(
        model=lora.model,
        args=arguments,
        train=train,
        validation=validation,
        shape=shape,
        micro_batch=micro_batch,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    # TRL casts LoRA to bf16, where Adam's small updates are lost to rounding; PEFT loads a checkpoint in
    # fp32, so a resumed run would differ from one that was never interrupted.
    for parameter in lora.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def training_arguments(
    parameters: Hyperparameters,
    shape: BatchShape,
    hardware: Hardware,
    checkpoints: Path,
    reporters: Sequence[str] = (),
    *,
    optimizer: Optimizer = PLAIN,
    recompute: bool = True,
) -> SFTConfig:
    """The settings of one training. Evaluating, saving and stopping are the callback's decisions."""
    total_steps = shape.total_steps(epochs=parameters.epochs, max_steps=parameters.max_steps)
    return SFTConfig(
        output_dir=str(checkpoints),
        seed=parameters.seed,
        data_seed=parameters.seed,
        # data
        max_length=None,  # every example fits already; here it would be cut
        padding_free=shape.packed,
        gradient_accumulation_steps=1,  # a batch is a step, see StepTrainer
        num_train_epochs=parameters.epochs,
        max_steps=total_steps,  # alone it decides: more than the epochs hold would be trained, too
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
        logging_nan_inf_filter=False,  # it would show a broken step as loss 0
        report_to=list(reporters),
        disable_tqdm=True,
        eval_strategy="no",
        save_strategy="no",
        save_total_limit=2,
    )


def planned_warm_up(parameters: Hyperparameters, shape: BatchShape) -> int:
    """How many steps of this training are below its full learning rate."""
    total_steps = shape.total_steps(epochs=parameters.epochs, max_steps=parameters.max_steps)
    return warm_up_steps(total_steps, parameters.warmup_steps)


def as_dataset(rows: Sequence[Row]) -> Dataset:
    """Rows in the form that TRL takes as already prepared."""
    return Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]})


def _loraplus_optimizer(trainer: StepTrainer, parameters: Hyperparameters) -> torch.optim.Optimizer:
    from peft.optimizers import create_loraplus_optimizer

    assert parameters.loraplus_lr_ratio is not None  # without it the trainer makes its own optimizer
    kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args)
    options = {name: value for name, value in options.items() if name != "lr"}
    return create_loraplus_optimizer(
        trainer.model,
        kind,
        lr=parameters.learning_rate,
        loraplus_lr_ratio=parameters.loraplus_lr_ratio,
        # Another name than the optimizer's own, which PEFT takes and sets to 0 in each group.
        loraplus_weight_decay=parameters.weight_decay,
        **options,
    )


def save_checkpoint_now(trainer: StepTrainer, callback: RunCallback) -> None:
    """Save the state after the last whole step; for a training that broke off within the next one."""
    trainer.model.zero_grad(set_to_none=True)
    save: Callable[..., None] = trainer._save_checkpoint  # noqa: SLF001 no public way outside the loop
    save(trainer.model, trial=None)
    folder = Path(str(trainer.args.output_dir)) / f"checkpoint-{trainer.state.global_step}"
    callback.mark(folder, trainer.state.global_step)
