"""What is decided before the weights are loaded: base model, rows, batches, attention, micro-batch."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lora_contract.batches import BatchShape, shape_batches
from lora_contract.hyperparameters import Hyperparameters
from lora_contract.serving_rules import DORA_NOTE
from lora_contract.words import counted
from lora_trainer.data.chat import Chat, prepare_tokenizer
from lora_trainer.data.rows import TrainingData
from lora_trainer.models.attention import choose_attention, needs_mask
from lora_trainer.models.bases import Base, BaseModels
from lora_trainer.models.compiling import should_compile
from lora_trainer.models.experts import has_experts
from lora_trainer.models.hardware import Hardware, free_gpu_bytes
from lora_trainer.models.loading import load_config, load_tokenizer
from lora_trainer.models.memory_plan import check_plan, format_plan
from lora_trainer.models.plan import planners
from lora_trainer.models.quantization import Quantization, begun_anew_note, choose_quantization
from lora_trainer.models.sharding import can_shard
from lora_trainer.models.targets import packing_decision
from lora_trainer.recipe.checkpoints import newest_checkpoint
from lora_trainer.recipe.methods import METHODS
from lora_trainer.recipe.methods.method import Method
from lora_trainer.recipe.ranks import ALONE, Ranks
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
    chat: Chat
    hardware: Hardware
    attention: str
    """The implementation of attention, as transformers calls it."""
    data: TrainingData
    shape: BatchShape
    micro_batch: int
    """Most rows of a forward pass."""
    recompute: bool
    """Whether the backward pass computes each layer's activations again, instead of keeping them."""
    lean: bool
    """Whether it computes the gated product of each MLP again, and keeps all else."""
    quantization: Quantization
    """How the base model is held."""
    compiles: bool
    """Whether the layers are compiled."""
    method: Method
    gpus: int
    """How many GPUs train, and share the items of each step."""
    sharded: bool
    """Whether each holds only a part of the base's layers."""
    trackers: list[str]
    """Experiment trackers that the training reports to, as transformers calls them."""
    notes: list[str]
    """Sentences for the user about requests that are not fulfilled."""


def prepare(task: Task, models: BaseModels, hardware: Hardware, gpu: GpuMonitor, ranks: Ranks = ALONE) -> TrainingSetup:
    """Find the base model, tokenise the dataset, and make sure that the training fits the GPU.

    Raises:
        BaseModelError: the base model can't be found, downloaded or used for chat.
        DatasetInvalidError: the dataset holds nothing to train on, or too many bad lines.
        DoesNotFitError: the training needs more memory than the GPU has.
    """
    parameters = task.hyperparameters
    with ranks.leader_first():
        base = models.find(str(parameters.base_model), parameters.base_revision)
    config, tokenizer = load_config(base), load_tokenizer(base)
    own_template = prepare_tokenizer(tokenizer)
    chat = Chat(tokenizer)
    method = METHODS[parameters.method]
    data = method.read(task.dataset, chat, parameters)
    packing, packing_note = packing_decision(config.model_type, parameters.packing)
    lengths = [method.trainer.tokens_of(item, packed=packing) for item in (*data.train, *data.validation)]
    shape = shape_batches(
        lengths[: len(data.train)],
        data.answers,
        batch_size=parameters.batch_size,
        max_length=parameters.max_length * method.rows_of_item,
        packing=packing,
        longest_held_out=max(lengths[len(data.train) :], default=0),
    )
    attention = choose_attention(config, hardware)
    begun = ranks.of_leader(newest_checkpoint(task.job_folder, task.fingerprint))
    passes = plan_passes(
        task,
        config=config,
        shape=shape,
        hardware=hardware,
        attention=attention,
        gpu_name=gpu.name,
        begun=begun.state.quantization if begun else None,
        ranks=ranks,
    )
    trackers, tracker_notes = usable_trackers() if ranks.leads else ([], [])
    return TrainingSetup(
        base=base,
        config=config,
        tokenizer=tokenizer,
        own_template=own_template,
        chat=chat,
        hardware=hardware,
        attention=attention,
        data=data,
        shape=shape,
        micro_batch=passes.micro_batch,
        recompute=passes.recompute,
        lean=passes.lean,
        quantization=passes.quantization,
        compiles=passes.compiles,
        method=method,
        gpus=ranks.count,
        sharded=passes.sharded,
        trackers=trackers,
        notes=[
            *filter(None, [packing_note, DORA_NOTE if parameters.use_dora else None, passes.note]),
            *settings_of_other_methods(method, parameters),
            *gpu_notes(ranks.count, task.gpu_config.count, len(data.train), shape, sharded=passes.sharded),
            *tracker_notes,
        ],
    )


def gpu_notes(gpus: int, asked: int, items: int, shape: BatchShape, *, sharded: bool) -> list[str]:
    """A sentence for the user about a training on several GPUs, or on fewer than it asks for."""
    if gpus < asked:
        return [f"The job asks for {counted(asked, 'GPU')}, and the trainer could use {gpus} of its machine."]
    if gpus == 1:
        return []
    each = items / shape.steps_per_epoch
    idle = "" if each >= gpus else f" A step has about {each:.1f} items, so not all of them had work in each."
    parts = " Each held a part of the base, since one had no room for base and training." if sharded else ""
    return [f"Trained on {gpus} GPUs, which shared the items of each step.{parts}{idle}"]


def settings_of_other_methods(method: Method, parameters: Hyperparameters) -> list[str]:
    """A sentence for the user where a chosen hyperparameter belongs to other methods only."""
    others = frozenset[str]().union(*(known.settings for known in METHODS.values())) - method.settings
    chosen = sorted(name for name in others if getattr(parameters, name) is not None)
    return [f"Without effect: method {parameters.method} has no {' and no '.join(chosen)}."] if chosen else []


@dataclass(frozen=True)
class Passes:
    """How the base model is held, and how much of a step goes through it at a time; the fields are the setup's."""

    quantization: Quantization
    micro_batch: int
    recompute: bool
    lean: bool = False
    compiles: bool = False
    sharded: bool = False
    note: str | None = None
    """A sentence for the user, where an earlier attempt's checkpoint can't be resumed."""


def plan_passes(
    task: Task,
    *,
    config: PretrainedConfig,
    shape: BatchShape,
    hardware: Hardware,
    attention: str,
    gpu_name: str | None,
    begun: Quantization | None,
    ranks: Ranks = ALONE,
) -> Passes:
    """What fits the GPU's free memory and is the fastest. `begun` is the quantisation of the newest checkpoint.

    Several GPUs compute passes of the same size, which the one with the least memory decides. They shard the base only
    where it does not fit otherwise: to gather each layer twice a pass takes time.

    Raises:
        DoesNotFitError: even one row takes more memory than the GPU has free.
        HyperparametersInvalidError: bf16 is asked for, but this GPU does not have it.
    """
    masked = needs_mask(attention, packed=shape.packed)
    # TRL joins the packed rows of a forward pass into one row, and a mask takes memory in the square of its length.
    most_rows = 1 if masked else math.ceil(shape.rows_per_step / ranks.count)
    limit = min(task.micro_batch or most_rows, most_rows)
    planner_of = planners(
        config,
        task.hyperparameters,
        row_tokens=shape.row_tokens,
        packed=shape.packed,
        attention=attention,
        dtype=hardware.dtype,
    )
    free_bytes = min(ranks.gather(free_gpu_bytes() if hardware.is_gpu else 0))
    quantization = choose_quantization(
        task.quantization or task.hyperparameters.quantization,
        hardware,
        # The same choice in each process of this execution: what memory ran out with is left aside here.
        lambda held: planner_of(held).fit(most_rows, free_bytes),
        free_bytes,
        begun=begun,
    )
    note = None if task.quantization else begun_anew_note(quantization, begun)
    may_shard = ranks.count > 1 and can_shard(task.hyperparameters)
    if not hardware.is_gpu:
        return Passes(quantization, limit, recompute=True, sharded=may_shard and task.shard_base, note=note)
    plan = planner_of(quantization).fit(limit, free_bytes, recompute=task.recompute)
    if sharded := may_shard and (task.shard_base or plan.needed > free_bytes):
        plan = planner_of(quantization).fit(limit, free_bytes, recompute=True, shards=ranks.count)
    log.info(
        "memory plan%s\n%s",
        f" of each of {ranks.count} GPUs{', the base sharded' if sharded else ''}" if ranks.count > 1 else "",
        format_plan(plan),
    )
    check_plan(plan, free_bytes, gpu_name or "this GPU")
    compiles = not sharded and should_compile(
        task.compile,
        tokens=_planned_tokens(task, shape),
        weights=plan.checkpoint_bytes // 2,
        has_experts=has_experts(config),
    )
    return Passes(quantization, plan.micro_batch, plan.recompute, plan.lean, compiles, sharded, note)


def _planned_tokens(task: Task, shape: BatchShape) -> int:
    parameters = task.hyperparameters
    steps = shape.total_steps(epochs=parameters.epochs, max_steps=parameters.max_steps)
    return steps * shape.rows_per_step * shape.row_tokens
