"""The recipe: what TRL's `SFTTrainer` is told, and how a training goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from trainer.batches import BatchShape
from trainer.callbacks import EvaluationLeftError, RunCallback
from trainer.chat import Row
from trainer.hyperparameters import Hyperparameters
from trainer.models import Hardware, Lora
from trainer.task import Task

_WARM_UP_SHARE = 0.03
_MAX_GRADIENT_NORM = 1.0
_SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class ResumableTrainer(SFTTrainer):
    """TRL's trainer, whose random states don't depend on when the held-out examples are looked at.

    Each evaluation draws a seed from the generator that dropout uses, so a run that resumes between a
    step and its evaluation would go on differently.
    """

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """As ever, with the random states put back afterwards; without a result when a stop was requested."""
        with torch.random.fork_rng():
            try:
                metrics: dict[str, float] = super().evaluate(*arguments, **options)
            except EvaluationLeftError:
                self.model.train()
                return {}
        return metrics


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
) -> SFTTrainer:
    """The trainer, ready for its first step."""
    arguments = training_arguments(task.hyperparameters, shape, micro_batch, hardware, task.checkpoints, reporters)
    trainer = trainer_for(lora, tokenizer, train, validation, arguments)
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
    arguments: SFTConfig,
) -> SFTTrainer:
    """TRL's trainer over prepared rows, with LoRA in fp32."""
    trainer = ResumableTrainer(
        model=lora.model,
        args=arguments,
        train_dataset=as_dataset(train),
        eval_dataset=as_dataset(validation) if validation else None,
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
    micro_batch: int,
    hardware: Hardware,
    checkpoints: Path,
    reporters: Sequence[str] = (),
) -> SFTConfig:
    """The settings of one training. Evaluating, saving and stopping are the callback's decisions."""
    return SFTConfig(
        output_dir=str(checkpoints),
        seed=parameters.seed,
        data_seed=parameters.seed,
        # data
        max_length=shape.row_tokens,
        packing=shape.packed,
        per_device_train_batch_size=micro_batch,
        per_device_eval_batch_size=micro_batch,
        gradient_accumulation_steps=shape.rows_per_step // micro_batch,
        num_train_epochs=parameters.epochs,
        max_steps=parameters.max_steps or -1,
        # optimizer
        optim="paged_adamw_8bit" if hardware.is_gpu else "adamw_torch",
        learning_rate=parameters.learning_rate,
        weight_decay=parameters.weight_decay,
        warmup_steps=_WARM_UP_SHARE if parameters.warmup_steps is None else parameters.warmup_steps,
        lr_scheduler_type=_SCHEDULERS[parameters.scheduler],
        max_grad_norm=_MAX_GRADIENT_NORM,
        neftune_noise_alpha=parameters.neftune_noise_alpha,
        router_aux_loss_coef=0.0,  # routers are not trained, so balancing them would only disturb the rest
        # precision and memory
        bf16=hardware.dtype is torch.bfloat16,
        fp16=hardware.dtype is torch.float16,
        use_cpu=not hardware.is_gpu,
        gradient_checkpointing=True,
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


def as_dataset(rows: Sequence[Row]) -> Dataset:
    """Rows in the form that TRL takes as already prepared."""
    return Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]})


def _loraplus_optimizer(trainer: SFTTrainer, parameters: Hyperparameters) -> torch.optim.Optimizer:
    from peft.optimizers import create_loraplus_optimizer

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


def save_checkpoint_now(trainer: SFTTrainer, callback: RunCallback) -> None:
    """Save the state after the last whole step; for a training that broke off within the next one."""
    trainer.model.zero_grad(set_to_none=True)
    trainer._save_checkpoint(trainer.model, trial=None)  # noqa: SLF001 no public way outside the loop
    folder = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
    callback.mark(folder, trainer.state.global_step)
