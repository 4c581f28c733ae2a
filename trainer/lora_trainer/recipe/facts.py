"""What is known of a training that has ended: the facts of the artifact's texts, the summary, the final metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lora_contract.protocol import FinalMetrics, Pace, Summary
from lora_contract.serving_rules import serving_note
from lora_contract.words import counted
from lora_trainer.artifact.generation import runs_on_note
from lora_trainer.artifact.model_card import ArtifactFacts
from lora_trainer.models.bases import licence_of
from lora_trainer.models.experts import experts_kernel
from lora_trainer.models.loading import Lora
from lora_trainer.recipe.callbacks import RunCallback
from lora_trainer.recipe.evaluation import Evaluator
from lora_trainer.recipe.setup import TrainingSetup
from lora_trainer.recipe.steps import planned_warm_up
from lora_trainer.run.gpu import GpuMonitor
from lora_trainer.run.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def collect_facts(
    task: Task, setup: TrainingSetup, lora: Lora, callback: RunCallback, evaluator: Evaluator, gpu: GpuMonitor
) -> ArtifactFacts:
    """What the artifact's texts and the summary say about a training that has ended."""
    data = setup.data
    return ArtifactFacts(
        base_name=setup.base.name,
        base_revision=setup.base.revision,
        base_licence=licence_of(setup.base),
        dataset_sha256=task.dataset_sha256,
        training_examples=data.answers,
        validation_examples=data.validation_answers,
        learns=setup.method.learns,
        unit=setup.method.unit,
        loss_unit=setup.method.loss_unit,
        init_adapter=task.init_adapter.id if task.init_adapter else None,
        parameters=task.hyperparameters,
        metrics=final_metrics(callback),
        steps=callback.points[-1].step,
        trainable=lora.trainable,
        target_modules=lora.targets.named,
        serving=serving_note(setup.config.model_type, lora.targets.named),
        split={"seed": task.hyperparameters.seed, "training": data.training_ids, "validation": data.validation_ids},
        own_template=setup.own_template,
        stop=setup.chat.rendering.stop,
        dtype=str(setup.hardware.dtype).removeprefix("torch."),
        packed=setup.shape.packed,
        attention=setup.attention,
        experts=experts_kernel(lora.model),
        quantization=setup.quantization,
        compiled=setup.compiles,
        warm_up_steps=planned_warm_up(task.hyperparameters, setup.shape),
        loss_before=callback.loss_before,
        gpu_type=gpu.name,
        gpus=setup.gpus,
        driver=gpu.driver,
        notes=[
            *data.notes,
            *filter(None, [lora.targets.note, _ending_note(setup, lora)]),
            *setup.notes,
            *_training_notes(callback, setup, task),
            *_never_better(callback, task, evaluator),
            *evaluator.notes,
        ],
        evaluation=evaluator.evaluation,
    )


def summarise(
    facts: ArtifactFacts,
    *,
    skipped_lines: int,
    epochs_completed: float,
    train_seconds: float,
    gpu_count: int | None,
    resumed_from_step: int | None,
    pace: Pace | None,
) -> Summary:
    """The summary that travels to the worker with the outcome."""
    return Summary(
        base_model=facts.base_name,
        base_revision=facts.base_revision,
        method=facts.parameters.method,
        init_adapter=facts.init_adapter,
        dataset_sha256=facts.dataset_sha256,
        training_examples=facts.training_examples,
        validation_examples=facts.validation_examples,
        skipped_lines=skipped_lines,
        epochs_completed=round(epochs_completed, 3),
        total_steps=facts.steps,
        train_seconds=round(train_seconds, 3),
        gpu_type=facts.gpu_type,
        gpu_count=gpu_count,
        gpus_used=facts.gpus,
        trainable_parameters=facts.trainable,
        quantization=facts.quantization,
        resumed_from_step=resumed_from_step,
        pace=pace,
        notes=facts.notes,
    )


def _ending_note(setup: TrainingSetup, lora: Lora) -> str | None:
    # PEFT promises a torch module only; it wraps the transformers model that was loaded.
    base = cast("PreTrainedModel", lora.model.get_base_model())
    return runs_on_note(base, setup.tokenizer, setup.chat.rendering.stop)


def _training_notes(callback: RunCallback, setup: TrainingSetup, task: Task) -> list[str]:
    notes = []
    if task.micro_batch is not None:
        notes.append(
            f"Memory ran out at first, so activations were recomputed, and each step of about "
            f"{counted(setup.shape.rows_per_step, 'row')} was computed {counted(setup.micro_batch, 'row')} at a time."
        )
    if task.quantization is not None:
        notes.append("Memory ran out with the base in bf16, so the training began anew with the base in 4 bits.")
    if task.compile == "failed":
        notes.append("The layers could not be compiled, so the training went on without, somewhat slower.")
    if callback.stopped_early_at is not None:
        notes.append(f"Stopped early at step {callback.stopped_early_at}: the validation loss fell no more.")
    if callback.best.step is not None and callback.best.step != callback.points[-1].step:
        notes.append(f"The adapter is that of step {callback.best.step}, with the lowest validation loss.")
    if planned_warm_up(task.hyperparameters, setup.shape) >= (steps := callback.points[-1].step) > 1:
        notes.append(
            f"The warm-up was as long as the training ({steps} steps): the full learning rate was not reached."
        )
    return notes


def _never_better(callback: RunCallback, task: Task, evaluator: Evaluator) -> list[str]:
    """A note where no evaluation was below that of the base; for sft, the comparison says the same with an interval."""
    compared = evaluator.evaluation is not None and evaluator.evaluation.held_out is not None
    lowest = final_metrics(callback).best_validation_loss
    if compared and task.hyperparameters.method == "sft":
        return []
    if lowest is None or callback.loss_before is None or lowest < callback.loss_before:
        return []
    return [f"The validation loss never fell below that of the base ({callback.loss_before:.4f})."]


def final_metrics(callback: RunCallback) -> FinalMetrics:
    """The first, last and best losses of the curve, the rewards, and its mean throughput in tokens per second."""

    def values(name: str) -> list[float]:
        return [value for point in callback.points if (value := getattr(point, name)) is not None]

    losses, validation, speeds = values("training_loss"), values("validation_loss"), values("throughput")
    # What is held out may be of one kind of thumb only, and then has no margin: that of the training is none of it.
    last = {name: curve[-1] for name in ("reward_margin", "reward_accuracy") if (curve := values(name))}
    rewards = last if callback.best.step is None else callback.best.rewards
    return FinalMetrics(
        first_training_loss=losses[0] if losses else None,
        final_training_loss=losses[-1] if losses else None,
        final_validation_loss=validation[-1] if validation else None,
        best_validation_loss=min(validation, default=None),
        final_reward_margin=rewards.get("reward_margin"),
        final_reward_accuracy=rewards.get("reward_accuracy"),
        tokens_per_second=round(sum(speeds) / len(speeds), 1) if speeds else None,
    )
