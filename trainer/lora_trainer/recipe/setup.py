"""What is decided before the weights are loaded: base model, rows, batches, attention, micro-batch."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lora_contract.batches import BatchShape, shape_batches
from lora_contract.renderings import Rendering
from lora_trainer.data.chat import Chat, prepare_tokenizer
from lora_trainer.data.rows import TrainingData
from lora_trainer.models.attention import choose_attention, needs_mask
from lora_trainer.models.bases import Base, BaseModels
from lora_trainer.models.hardware import Hardware
from lora_trainer.models.loading import load_config, load_tokenizer
from lora_trainer.models.plan import Planner, check_plan, format_plan
from lora_trainer.models.targets import DORA_NOTE, packing_decision
from lora_trainer.recipe.methods import METHODS
from lora_trainer.recipe.methods.method import Method
from lora_trainer.recipe.steps import item_tokens
from lora_trainer.recipe.trackers import usable_trackers
from lora_trainer.run.gpu import GpuMonitor
from lora_trainer.run.task import Task

log = logging.getLogger(__name__)


@dataclass
class TrainingSetup:
    """All that is decided before the weights are loaded."""

    base: Base
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    own_template: bool
    """Whether the base model had no chat template, so that the trainer's was put in."""
    rendering: Rendering
    hardware: Hardware
    attention: str
    """The implementation of attention, as transformers calls it."""
    data: TrainingData
    shape: BatchShape
    micro_batch: int
    """Most rows of a forward pass."""
    recompute: bool
    """Whether the backward pass computes each layer's activations again, instead of keeping them."""
    method: Method
    trackers: list[str]
    """Experiment trackers that the training reports to, as transformers calls them."""
    notes: list[str]
    """Sentences for the user about requests that are not fulfilled."""


def prepare(task: Task, models: BaseModels, hardware: Hardware, gpu: GpuMonitor) -> TrainingSetup:
    """Find the base model, tokenise the dataset, and make sure that the training fits the GPU.

    Raises:
        BaseModelError: the base model can't be found, downloaded or used for chat.
        DatasetInvalidError: the dataset holds nothing to train on, or too many bad lines.
        DoesNotFitError: the training needs more memory than the GPU has.
    """
    parameters = task.hyperparameters
    base = models.find(str(parameters.base_model), parameters.base_revision)
    config, tokenizer = load_config(base), load_tokenizer(base)
    own_template = prepare_tokenizer(tokenizer)
    chat = Chat(tokenizer)
    method = METHODS[parameters.method]
    data = method.read(task.dataset, chat, parameters)
    packing, packing_note = packing_decision(config.model_type, parameters.packing)
    lengths = [item_tokens(method.trainer.rows_of(item), packed=packing) for item in (*data.train, *data.validation)]
    shape = shape_batches(
        lengths[: len(data.train)],
        data.answers,
        batch_size=parameters.batch_size,
        max_length=parameters.max_length * method.rows_of_item,
        packing=packing,
        longest_held_out=max(lengths[len(data.train) :], default=0),
    )
    attention = choose_attention(config, hardware, packed=shape.packed)
    micro_batch, recompute = _plan_passes(
        task, config=config, shape=shape, hardware=hardware, attention=attention, gpu_name=gpu.name
    )
    trackers, tracker_notes = usable_trackers()
    return TrainingSetup(
        base=base,
        config=config,
        tokenizer=tokenizer,
        own_template=own_template,
        rendering=chat.rendering,
        hardware=hardware,
        attention=attention,
        data=data,
        shape=shape,
        micro_batch=micro_batch,
        recompute=recompute,
        method=method,
        trackers=trackers,
        notes=[*filter(None, [packing_note, DORA_NOTE if parameters.use_dora else None]), *tracker_notes],
    )


def _plan_passes(
    task: Task, *, config: PretrainedConfig, shape: BatchShape, hardware: Hardware, attention: str, gpu_name: str | None
) -> tuple[int, bool]:
    """The most rows of a forward pass, and whether the backward pass computes each layer again.

    Raises:
        DoesNotFitError: even one row takes more memory than the GPU has free.
    """
    masked = needs_mask(attention, packed=shape.packed)
    # TRL joins the packed rows of a forward pass into one row, and a mask takes memory in the square of its length.
    limit = 1 if masked else min(task.micro_batch or shape.rows_per_step, shape.rows_per_step)
    if not hardware.is_gpu:
        return limit, True
    planner = Planner(
        config,
        task.hyperparameters,
        row_tokens=shape.row_tokens,
        packed=shape.packed,
        attention=attention,
        dtype=hardware.dtype,
    )
    free_bytes = torch.cuda.mem_get_info()[0]  # other processes may hold a part of the GPU's memory
    plan = planner.fit(limit, free_bytes, recompute=task.recompute)
    log.info("memory plan\n%s", format_plan(plan))
    check_plan(plan, free_bytes, gpu_name or "this GPU")
    return plan.micro_batch, plan.recompute
