"""Loads a base as a server would, and the published files of an adapter onto it.

No layer is fused or compiled here, and PEFT alone attaches the adapter: what is tried is what others will load. The one
exception are routed experts on a base in 4 bits, on which PEFT attaches nothing.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from lora_contract.application import Precision
from lora_trainer.errors import NotAppliedError
from lora_trainer.models.bases import Base
from lora_trainer.models.cuda_faults import context_is_broken, is_out_of_memory
from lora_trainer.models.expert_lora import PROJECTIONS, as_trained, attach_expert_lora, experts_with_lora
from lora_trainer.models.hardware import Hardware, free_gpu_bytes
from lora_trainer.models.plan import Planner
from lora_trainer.models.quantization import BF16, NF4, Quantization
from lora_trainer.models.targets import targets_of, without_peft_conversion
from lora_trainer.run.logs import describe
from lora_trainer.run.proof_task import CONFIG_NAME, WEIGHTS_NAME, ProofTask

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)

_PRECISIONS: dict[torch.dtype, Precision] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_READ_BYTES_PER_SECOND = 1e9
"""What a network volume gives, as far as it is known (docs/performance.md)."""
_MOST_READING = 0.02
"""The largest share of a training's time that reading the base whole may take, after a training in 4 bits; with the
rest, a trial on a base of 8B stays below 5 % of ten minutes."""
_DAMAGED = "Its files on the volume are damaged; start the job again with another seed to train it anew."


def choose_precision(task: ProofTask, config: PretrainedConfig, hardware: Hardware, *, tokens: int) -> Quantization:
    """How the base is held: not quantised, as most servers load it, where that fits into the GPU's free memory.

    After a short training in 4 bits it is held so again, from its quantised copy: to read a large base whole would take
    longer than the trial is worth. After a training in bf16 there need be no such copy, and 4 bits would be made of the
    whole base, too. `tokens` are those of the largest forward pass. A training of one such row needs
    more than answers do: its gradients and the inputs of all layers, where an answer keeps keys and values. So its plan
    is the measure.
    """
    if task.precision == NF4:
        return NF4
    if not hardware.is_gpu:
        return BF16
    planner = Planner(
        config, task.hyperparameters, row_tokens=tokens, packed=False, dtype=hardware.dtype, quantize=False
    )
    plan, free = planner.plan(1), free_gpu_bytes()
    needed, seconds = (
        plan.needed + _logit_bytes(config, hardware, tokens),
        plan.checkpoint_bytes / _READ_BYTES_PER_SECOND,
    )
    log.info(
        "the base takes %.1f GB not quantised, %.1f GB are free, and %.0f seconds to read",
        *(needed / 1e9, free / 1e9, seconds),
    )
    is_slow = task.trained_in_4_bits and seconds > _MOST_READING * task.train_seconds
    return NF4 if is_slow or needed > free else BF16


def choose_devices(
    task: ProofTask, config: PretrainedConfig, hardware: Hardware, held: Quantization, *, tokens: int
) -> list[str]:
    """The GPUs over which the base is spread, where it does not fit the first; none: it is held there alone."""
    if not hardware.is_gpu or task.gpus == 1 or held != NF4:
        return []
    planner = Planner(config, task.hyperparameters, row_tokens=tokens, packed=False, dtype=hardware.dtype)
    needed, free = planner.plan(1).needed + _logit_bytes(config, hardware, tokens), free_gpu_bytes()
    gpus = min(task.gpus, torch.cuda.device_count())
    if needed <= free or gpus == 1:
        return []
    log.info("the base takes %.1f GB in 4 bits: its layers are spread over %d GPUs", needed / 1e9, gpus)
    return [f"cuda:{number}" for number in range(gpus)]


def _logit_bytes(config: PretrainedConfig, hardware: Hardware, tokens: int) -> int:
    return 2 * tokens * int(config.get_text_config().vocab_size) * hardware.dtype.itemsize


def precision_name(held: Quantization, hardware: Hardware) -> Precision:
    """The precision in which the base is held, as the proof names it."""
    return "nf4" if held == NF4 else _PRECISIONS[hardware.dtype]


def read_published(artifact: Path, base: Base) -> dict[str, torch.Tensor]:
    """The tensors of the published file.

    Raises:
        NotAppliedError: a file is missing or damaged, or the adapter says that it is of another base.
    """
    try:
        config = json.loads((artifact / CONFIG_NAME).read_bytes())
        tensors = load_file(artifact / WEIGHTS_NAME)
        name = config["base_model_name_or_path"]
    except FileNotFoundError as error:
        raise NotAppliedError(f"{Path(error.filename or WEIGHTS_NAME).name} is missing.", _DAMAGED) from None
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise NotAppliedError(f"{CONFIG_NAME} or {WEIGHTS_NAME} of the adapter can't be read.", _DAMAGED) from None
    if name != base.name:
        raise NotAppliedError(
            f"The published adapter names {str(name)[:200]} as its base, and was trained on {base.name}.", _DAMAGED
        )
    return tensors


def load_adapter(model: PreTrainedModel, task: ProofTask, held: Quantization) -> PeftModel:
    """The base with the published adapter. It may have taken only a part of it: `check_coverage` finds out.

    Raises:
        NotAppliedError: PEFT can't load it.
    """
    targets = targets_of(model, task.hyperparameters)
    try:
        if targets.routed_experts and held == NF4:
            return _load_on_quantised_experts(model, task.artifact)
        with without_peft_conversion(model.config.model_type, targets):
            # Without `ignore_mismatched_sizes` PEFT would list every wrong shape, and name no count.
            adapted = PeftModel.from_pretrained(model, str(task.artifact), ignore_mismatched_sizes=True)
    except Exception as error:
        if is_out_of_memory(error) or context_is_broken(error):
            raise
        log.error("%s", describe(error))
        raise NotAppliedError(
            f"PEFT can't load the published adapter ({type(error).__name__}): its tensors don't fit the base.",
            "Please report it to support.",
        ) from None
    loaded: PeftModel = adapted.eval()
    return loaded


def _load_on_quantised_experts(model: PreTrainedModel, artifact: Path) -> PeftModel:
    """PEFT would skip the experts without an error, so LoRA is attached to them as in training."""
    config: Any = LoraConfig.from_pretrained(str(artifact))
    config.target_modules = {name for name in config.target_modules if name not in PROJECTIONS}
    config.rank_pattern, config.alpha_pattern = {}, {}
    adapted: Any = get_peft_model(model, config)
    attach_expert_lora(adapted, config)
    set_peft_model_state_dict(adapted, as_trained(load_file(artifact / WEIGHTS_NAME), experts_with_lora(adapted)))
    loaded: PeftModel = adapted.eval()
    return loaded
