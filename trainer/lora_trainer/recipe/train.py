"""The training process: `python -m lora_trainer.recipe.train <events fd>`, with its task on standard input.

`train` is the recipe from top to bottom. Whatever happens, the outcome stands in the execution's
folder before the process ends; a crash leaves none, and the handler says how the process died.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
from dataclasses import dataclass
from typing import Any, NoReturn

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A user's training is nobody's statistics.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# One GPU trains; with more in sight transformers would wrap the model in DataParallel, which TRL refuses.
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]

import datasets
import torch
import transformers
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lora_contract.batches import BatchShape, shape_batches, smaller_micro_batch
from lora_contract.protocol import FinalMetrics, Stage, Summary
from lora_contract.renderings import Rendering
from lora_contract.words import counted
from lora_trainer.artifact.folder import save_artifact
from lora_trainer.artifact.model_card import Facts
from lora_trainer.data.chat import Chat, prepare_tokenizer
from lora_trainer.data.rows import Data, prepare_data
from lora_trainer.errors import DiskFullError, OutOfMemoryError, StoppedError, TrainingError
from lora_trainer.models.attention import choose_attention, needs_mask
from lora_trainer.models.bases import Base, BaseModels, licence_of
from lora_trainer.models.cuda_faults import context_is_broken, is_out_of_memory
from lora_trainer.models.loading import (
    Hardware,
    Lora,
    attach_lora,
    detect_hardware,
    load_config,
    load_model,
    load_tokenizer,
)
from lora_trainer.models.plan import check_plan, format_plan, largest_fitting_micro_batch, plan_memory
from lora_trainer.models.targets import DORA_NOTE, packing_decision, serving_note
from lora_trainer.recipe.callbacks import RunCallback, load_trainable_weights
from lora_trainer.recipe.checkpoints import newest_checkpoint
from lora_trainer.recipe.sft import StepTrainer, build_trainer, planned_warm_up, save_checkpoint_now
from lora_trainer.recipe.stopping import StopSwitch, end_with_the_handler
from lora_trainer.recipe.trackers import usable_reporters
from lora_trainer.run.events import Reporter
from lora_trainer.run.gpu import GpuMonitor
from lora_trainer.run.task import Outcome, Task
from lora_trainer.run.volume import FULL_DISK_HINT, is_full_disk

log = logging.getLogger("lora_trainer.recipe.train")


@dataclass
class Prepared:
    """All that is decided before the weights are loaded."""

    base: Base
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    own_template: bool
    rendering: Rendering
    dtype: str
    attention: str
    data: Data
    shape: BatchShape
    micro_batch: int
    reporters: list[str]
    notes: list[str]
    """Sentences for the user on what was asked for and is not done."""


def train(task: Task, reporter: Reporter, stop: StopSwitch, gpu: GpuMonitor) -> Outcome:
    """Carry out one task: from the dataset's file to the artifact's folder."""
    transformers.set_seed(task.hyperparameters.seed)
    hardware = detect_hardware()

    reporter.stage(Stage.PREPARING)
    models = BaseModels(task.volume, trusted=task.trust_remote_code)
    prepared = prepare(task, models, hardware, gpu)

    reporter.stage(Stage.LOADING_MODEL)
    prepared.base = models.complete(prepared.base)
    model = load_model(prepared.base, prepared.config, hardware, attention=prepared.attention)

    reporter.stage(Stage.CONFIGURING)
    lora = attach_lora(model, task.hyperparameters)
    data, shape = prepared.data, prepared.shape
    callback = RunCallback(task, reporter, stop, gpu, validates=bool(data.validation))
    trainer = build_trainer(
        lora,
        prepared.tokenizer,
        data.train,
        data.validation,
        shape,
        prepared.micro_batch,
        task,
        hardware,
        callback,
        prepared.reporters,
    )
    resumed = newest_checkpoint(task.job_folder, task.fingerprint)

    reporter.stage(Stage.TRAINING, lora.sentence())
    if resumed is not None:
        callback.restore(*resumed)
    if not run_training(trainer, callback, stop, str(resumed[0]) if resumed else None):
        return _out_of_memory(task, shape, prepared.micro_batch)
    if callback.stopped:
        raise StoppedError(
            f"The training was stopped after step {trainer.state.global_step} of {trainer.state.max_steps}.",
            "The next attempt goes on from there.",
        )

    reporter.stage(Stage.SAVING)
    if callback.best.step is not None:
        load_trainable_weights(trainer.model, callback.best.weights)
    facts = collect_facts(task, prepared, lora, callback, gpu)
    save_artifact(task.artifact, lora.model, prepared.tokenizer, facts, callback.points, task.archive_name)
    return Outcome(
        status="trained",
        fingerprint=task.fingerprint,
        metrics=facts.metrics,
        points=callback.points,
        summary=Summary(
            base_model=facts.base_name,
            base_revision=facts.base_revision,
            dataset_sha256=facts.dataset_sha256,
            training_examples=facts.training_examples,
            validation_examples=facts.validation_examples,
            skipped_lines=data.skipped_lines,
            epochs_completed=round(trainer.state.epoch or 0, 3),
            total_steps=facts.steps,
            train_seconds=round(callback.train_seconds, 3),
            gpu_type=gpu.name,
            gpu_count=gpu.count,
            trainable_parameters=lora.trainable,
            resumed_from_step=resumed[1].step if resumed else None,
            notes=facts.notes,
        ),
    )


def prepare(task: Task, models: BaseModels, hardware: Hardware, gpu: GpuMonitor) -> Prepared:
    """Find the base, read and render the data, and make sure that the training fits the GPU."""
    parameters = task.hyperparameters
    base = models.find(str(parameters.base_model), parameters.base_revision)
    config, tokenizer = load_config(base), load_tokenizer(base)
    own_template = prepare_tokenizer(tokenizer)
    chat = Chat(tokenizer)
    data = prepare_data(task.dataset, chat, parameters)
    packing, packing_note = packing_decision(config.model_type, parameters.packing)
    shape = shape_batches(
        [len(row.input_ids) for row in data.train],
        data.answers,
        batch_size=parameters.batch_size,
        max_length=parameters.max_length,
        packing=packing,
        longest_held_out=max((len(row.input_ids) for row in data.validation), default=0),
    )
    attention = choose_attention(config, hardware, packed=shape.packed)
    masked = needs_mask(attention, packed=shape.packed)
    # TRL strings the packed rows of a micro-batch together, and the mask grows with the square of that.
    limit = 1 if masked else min(task.micro_batch or shape.rows_per_step, shape.rows_per_step)
    if hardware.is_gpu:
        plan = plan_memory(
            config, parameters, row_tokens=shape.row_tokens, micro_batch=1, dtype=hardware.dtype, masked=masked
        )
        log.info("memory plan\n%s", format_plan(plan))
        gpu_bytes = torch.cuda.mem_get_info()[1]
        check_plan(plan, gpu_bytes, gpu.name or "this GPU")
        limit = largest_fitting_micro_batch(plan, limit, gpu_bytes)
    reporters, reporter_notes = usable_reporters()
    notes = [*filter(None, [packing_note, DORA_NOTE if parameters.use_dora else None]), *reporter_notes]
    dtype = str(hardware.dtype).removeprefix("torch.")
    return Prepared(
        *(base, config, tokenizer, own_template, chat.rendering, dtype, attention),
        *(data, shape, limit, reporters, notes),
    )


def collect_facts(task: Task, prepared: Prepared, lora: Lora, callback: RunCallback, gpu: GpuMonitor) -> Facts:
    """What the artifact's texts and the summary say."""
    data = prepared.data
    return Facts(
        base_name=prepared.base.name,
        base_revision=prepared.base.revision,
        base_licence=licence_of(prepared.base),
        dataset_sha256=task.dataset_sha256,
        training_examples=data.answers,
        validation_examples=data.validation_answers,
        parameters=task.hyperparameters,
        metrics=final_metrics(callback),
        steps=callback.points[-1].step,
        trainable=lora.trainable,
        target_modules=lora.targets.modules,
        serving=serving_note(prepared.config.model_type),
        split={"seed": task.hyperparameters.seed, "training": data.training_ids, "validation": data.validation_ids},
        own_template=prepared.own_template,
        stop=prepared.rendering.stop,
        dtype=prepared.dtype,
        packed=prepared.shape.packed,
        warm_up_steps=planned_warm_up(task.hyperparameters, prepared.shape),
        loss_before=callback.loss_before,
        gpu_type=gpu.name,
        driver=gpu.driver,
        notes=[
            *data.notes,
            *filter(None, [lora.targets.note]),
            *prepared.notes,
            *_training_notes(callback, prepared.shape, prepared.micro_batch, task),
        ],
    )


def run_training(trainer: StepTrainer, callback: RunCallback, stop: StopSwitch, checkpoint: str | None) -> bool:
    """Train to the end or to a stop; False when memory ran out.

    Then there is a checkpoint of the last whole step, unless the GPU can't be read any more: the next
    process goes on from the checkpoint before.
    """
    stop.training_begins()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if context_is_broken(error):
            return False
        traceback.clear_frames(error.__traceback__)  # they hold the tensors that were too many
    else:
        return True
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if trainer.state.global_step > 0:
        save_checkpoint_now(trainer, callback)
    return False


def _out_of_memory(task: Task, shape: BatchShape, micro_batch: int) -> Outcome:
    error = OutOfMemoryError(
        f"Memory ran out with {counted(micro_batch, 'row')} of {shape.row_tokens} tokens per forward pass.",
        "Lower max_length or the rank, or choose a GPU with more memory.",
    )
    return Outcome(
        status="failed",
        fingerprint=task.fingerprint,
        error=error.as_protocol(),
        next_micro_batch=smaller_micro_batch(micro_batch),
    )


def _training_notes(callback: RunCallback, shape: BatchShape, micro_batch: int, task: Task) -> list[str]:
    notes = []
    if task.micro_batch is not None:
        notes.append(
            f"Memory ran out with larger steps, so each step of about {counted(shape.rows_per_step, 'row')} was "
            f"computed {counted(micro_batch, 'row')} at a time."
        )
    if callback.stopped_early_at is not None:
        notes.append(f"Stopped early at step {callback.stopped_early_at}: the validation loss fell no more.")
    if callback.best.step is not None and callback.best.step != callback.points[-1].step:
        notes.append(f"The adapter is that of step {callback.best.step}, with the lowest validation loss.")
    lowest = final_metrics(callback).best_validation_loss
    if lowest is not None and callback.loss_before is not None and lowest >= callback.loss_before:
        notes.append(f"The validation loss never fell below that of the base ({callback.loss_before:.4f}).")
    if planned_warm_up(task.hyperparameters, shape) >= (steps := callback.points[-1].step) > 1:
        notes.append(
            f"The warm-up was as long as the training ({steps} steps): the full learning rate was not reached."
        )
    if task.gpu_config.count > 1:
        notes.append(f"One of the {task.gpu_config.count} GPUs asked for was used; a single one is enough.")
    return notes


def final_metrics(callback: RunCallback) -> FinalMetrics:
    """What the curve ended with."""

    def values(name: str) -> list[float]:
        return [value for point in callback.points if (value := getattr(point, name)) is not None]

    losses, validation, speeds = values("training_loss"), values("validation_loss"), values("throughput")
    return FinalMetrics(
        first_training_loss=losses[0] if losses else None,
        final_training_loss=losses[-1] if losses else None,
        final_validation_loss=validation[-1] if validation else None,
        best_validation_loss=min(validation, default=None),
        tokens_per_second=round(sum(speeds) / len(speeds), 1) if speeds else None,
    )


def main(arguments: list[str]) -> int:
    """Read the task, train, leave the outcome; 0 when the artifact is whole."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    task = Task.model_validate_json(sys.stdin.readline())
    end_with_the_handler()
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # the CPU trains tiny models only, and they gain nothing from more
    gpu = GpuMonitor(wanted=torch.cuda.is_available())
    with os.fdopen(int(arguments[0]), "w", encoding="utf-8") as events:
        outcome = attempt(task, Reporter(events, task, gpu), gpu)
    outcome.write(task.folder)
    return 0 if outcome.status == "trained" else 1


def attempt(task: Task, reporter: Reporter, gpu: GpuMonitor) -> Outcome:
    """`train`, with every failure turned into an outcome."""
    try:
        return train(task, reporter, StopSwitch(lambda: _end_before_training(task)), gpu)
    except TrainingError as error:
        status: Any = "stopped" if isinstance(error, StoppedError) else "failed"
        return Outcome(status=status, fingerprint=task.fingerprint, error=error.as_protocol())
    except Exception as error:
        # Only the places in the code: the text of an exception may hold dataset text.
        log.error("%s at\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)[-8:]))
        known = explain(error)
        return Outcome(status="failed", fingerprint=task.fingerprint, error=known.as_protocol())


def explain(error: Exception) -> TrainingError:
    """A library's exception in the user's words."""
    if is_out_of_memory(error):
        return OutOfMemoryError(
            "Memory ran out before the training began.", "Choose a GPU with more memory, or a smaller base model."
        )
    if context_is_broken(error):
        return TrainingError(
            f"The GPU failed ({type(error).__name__}).",
            "The next attempt goes on from the last checkpoint; the container's log says where it happened.",
        )
    if is_full_disk(error):
        return DiskFullError("The disk or the network volume is full.", FULL_DISK_HINT)
    return TrainingError(
        f"The training failed unexpectedly ({type(error).__name__}).", "The container's log says where."
    )


def _end_before_training(task: Task) -> NoReturn:
    error = StoppedError("The training was stopped before its first step.", "The next attempt starts anew.")
    Outcome(status="stopped", fingerprint=task.fingerprint, error=error.as_protocol()).write(task.folder)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
