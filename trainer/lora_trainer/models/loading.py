"""Loads a base model in 4 bits and attaches LoRA to it."""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bitsandbytes as bnb
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from lora_contract.hyperparameters import Hyperparameters
from lora_trainer.errors import BaseModelMismatchError, BaseModelUnknownError, TrainingError
from lora_trainer.models.attention import SDPA
from lora_trainer.models.bases import Base, weight_files
from lora_trainer.models.cuda_faults import is_out_of_memory
from lora_trainer.models.expert_lora import ExpertLoraSize, attach_expert_lora, count_expert_lora
from lora_trainer.models.experts import quantising_experts, unquantised_experts
from lora_trainer.models.hardware import Hardware
from lora_trainer.models.packed import group_names, stored_tensors
from lora_trainer.models.quantised_cache import FORMAT, Copy, Facts, QuantisedCache
from lora_trainer.models.reading import ReadAhead, serving
from lora_trainer.models.sharding import count_layers, posing_as_whole, sharding_layers
from lora_trainer.models.spreading import spread_layers
from lora_trainer.models.targets import (
    ARCHITECTURES,
    ROUTED,
    Targets,
    check_coverage,
    high_precision_modules,
    targets_of,
    without_peft_conversion,
)
from lora_trainer.models.weight_files import Span, read_spans
from lora_trainer.run.logs import describe
from lora_trainer.run.volume import is_full_disk

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def load_config(base: Base) -> PretrainedConfig:
    """The model's configuration.

    Raises:
        BaseModelUnknownError: it needs code of its own, or is of an architecture that transformers doesn't know.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(base.folder, trust_remote_code=base.trusted)
    except (ValueError, OSError, json.JSONDecodeError) as error:
        if "trust_remote_code" in str(error):
            raise BaseModelUnknownError(
                f"The base model {base.name} brings code of its own, which is not run unless allowed.",
                "Choose another base, or name it in LORA_TRAINER_TRUST_REMOTE_CODE on the endpoint.",
            ) from None
        raise BaseModelUnknownError(
            f"The configuration of the base model {base.name} can't be read.",
            "It may be newer than the trainer's image, or its files on the volume may be damaged.",
        ) from None
    return config


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        BaseModelUnknownError: the model has none, or it can't be read.
    """
    try:
        return AutoTokenizer.from_pretrained(base.folder, trust_remote_code=base.trusted)
    except (ValueError, OSError, KeyError, AttributeError):
        raise BaseModelUnknownError(f"The tokenizer of the base model {base.name} can't be read.") from None


def load_model(
    base: Base,
    config: PretrainedConfig,
    hardware: Hardware,
    *,
    attention: str = SDPA,
    quantize: bool = True,
    cache: QuantisedCache | None = None,
    sharded: bool = False,
    devices: Sequence[str] = (),
) -> PreTrainedModel:
    """The base model: linear layers and experts in NF4 with double quantisation, or all in full precision.

    `attention` is what `lora_trainer.models.attention.choose_attention` chose. A quantised model is read from `cache`
    if that has it; if not, `cache` begins to write it. A `sharded` one is the share of this process in a base that all
    processes of the training hold together. `devices` are several over which the layers are spread in this process.
    With either no copy is read or written.

    Raises:
        BaseModelMismatchError: its files are damaged, or do not fit its configuration.
        BaseModelUnknownError: it can't be sharded.
        TrainingError: the GPU or the volume failed; a retry may succeed.
    """
    options: dict[str, Any] = {
        "config": config,
        "dtype": hardware.dtype,
        "device_map": spread_layers(config, devices) if devices else {"": hardware.device},
        "attn_implementation": attention,
        "trust_remote_code": base.trusted,
    }
    if quantize:
        options["quantization_config"] = _quantization(config, hardware)
    if sharded:
        model = _load_share(base, options, hardware)
    elif quantize and not devices and cache is not None and cache.is_on:
        model = _load_through(cache, base, options, hardware)
    else:
        model = _load_files(base, options, hardware)
    _keep_constants(model)
    if quantize and (left := unquantised_experts(model)):
        raise BaseModelMismatchError(f"{len(left)} expert matrices of {base.name} were not quantised.")
    return model


def _load_through(cache: QuantisedCache, base: Base, options: dict[str, Any], hardware: Hardware) -> PreTrainedModel:
    """The quantised model from its copy, or from the base's files, of which a copy is written then."""
    try:
        facts = copy_facts(base, options["config"], hardware)
    except OSError as error:
        log.warning(
            "no copy of the quantised model is used, since a file of the base can't be read: %s", describe(error)
        )
        facts = None
    if facts is None:
        return _load_files(base, options, hardware)
    model = _load_copy(base, facts, cache, options, hardware)
    if model is None:
        model = _load_files(base, options, hardware)
        cache.begin_writing(facts, stored_tensors(model))
    return model


def _load_share(base: Base, options: dict[str, Any], hardware: Hardware) -> PreTrainedModel:
    """The part of the model that this process holds of each layer, and all that is outside of the layers."""
    with sharding_layers(hardware.device):
        model = _load_files(base, options, hardware)
    layers, sharded = count_layers(model)
    if layers == 0:
        raise BaseModelUnknownError(
            f"The base model {base.name} has no layers that can be sharded over GPUs.",
            "Choose a GPU with more memory, or a base model of another architecture.",
        )
    if sharded < layers:
        raise BaseModelMismatchError(
            f"{layers - sharded} layers of {base.name} can't be sharded over GPUs: "
            "its files lack weights of them, or layers share their weights."
        )
    log.info("the base's %d layers are sharded", layers)
    return model


def _load_files(base: Base, options: dict[str, Any], hardware: Hardware) -> PreTrainedModel:
    """The model from the base's own files."""
    try:
        with quantising_experts(), _reading_ahead(base.folder, hardware):
            return AutoModelForCausalLM.from_pretrained(base.folder, **options)
    except Exception as error:
        # `lora_trainer.recipe.train.explain` has errors of their own for a full memory or disk.
        if is_out_of_memory(error) or is_full_disk(error):
            raise
        raise _loading_failed(base, error) from error


@contextmanager
def _reading_ahead(folder: Path, hardware: Hardware) -> Iterator[None]:
    """While this context is open, the weights in `folder` are read by background threads."""
    spans: dict[str, Span] = {}
    try:
        files = weight_files(folder)
        for file in files:
            spans |= read_spans(file)
    except (OSError, ValueError, KeyError):
        yield  # the library reads by itself, and says what is wrong
        return
    with ReadAhead(spans, pinned=hardware.is_gpu) as reader:
        readers = {name: (partial(reader.tensor, name), span) for name, span in spans.items()}
        with serving(files, readers):
            yield


def _load_copy(
    base: Base, facts: Facts, cache: QuantisedCache, options: dict[str, Any], hardware: Hardware
) -> PreTrainedModel | None:
    """The model from its quantised copy; None if there is none, or it turns out to be damaged."""
    copy = cache.find(facts)
    if copy is None:
        return None
    try:
        model = _load_whole_copy(base, copy, options, hardware)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        log.warning("the quantised copy of %s can't be loaded: %s", base.name, describe(error))
        if not isinstance(error, OSError):  # those of the disk may pass
            cache.discard(facts)
    else:
        log.info("%s was loaded from its quantised copy", base.name)
        return model
    gc.collect()  # what was loaded would take memory beside the base
    return None


def _load_whole_copy(base: Base, copy: Copy, options: dict[str, Any], hardware: Hardware) -> PreTrainedModel:
    loader: Any = AutoModelForCausalLM
    with ReadAhead(copy.spans, pinned=hardware.is_gpu, checksums=copy.checksums) as reader:
        readers = {
            weight.name: (partial(weight.read, reader.tensor), copy.spans[weight.name])
            for weight in group_names(copy.spans)
        }
        with quantising_experts(), serving(weight_files(base.folder), readers):
            model, report = loader.from_pretrained(base.folder, **options, output_loading_info=True)
    if wrong := [*report["missing_keys"], *report["unexpected_keys"]]:
        raise ValueError(f"{len(wrong)} tensors are missing or too many")
    loaded: PreTrainedModel = model
    return loaded


def copy_facts(base: Base, config: PretrainedConfig, hardware: Hardware) -> Facts | None:
    """All that the bytes of a quantised model depend on; None for a model of which no copy is kept.

    Those are models with code of their own and of architectures that were not tried: a copy might lack a part.
    """
    if base.trusted or config.model_type not in ARCHITECTURES:
        return None
    files = [(file.name, file.stat()) for file in weight_files(base.folder)]
    return {
        "format": FORMAT,
        "base": base.name,
        "revision": base.revision,
        # A commit names the content of its files; a plain folder's may be replaced by others of the same size.
        "files": [[name, at.st_size, None if base.revision else at.st_mtime_ns] for name, at in files],
        "config": hashlib.sha256((base.folder / "config.json").read_bytes()).hexdigest(),
        "quantisation": json.loads(json.dumps(_quantization(config, hardware).to_dict(), default=str)),
        "dtype": str(hardware.dtype),
        "device": torch.device(hardware.device).type,
        "versions": {name: importlib.metadata.version(name) for name in ("bitsandbytes", "transformers")},
    }


def _quantization(config: PretrainedConfig, hardware: Hardware) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=hardware.dtype,
        llm_int8_skip_modules=high_precision_modules(config.model_type),
    )


def _loading_failed(base: Base, error: Exception) -> TrainingError:
    kind = type(error).__name__
    if _is_damage(error):
        return BaseModelMismatchError(
            f"The weights of the base model {base.name} can't be loaded ({kind}).",
            "Remove its folder from the volume, so that it is downloaded again.",
        )
    # This error is transient: the GPU's driver or the volume may work next time.
    log.error("loading %s: %s", base.name, describe(error))
    return TrainingError(
        f"The base model {base.name} could not be loaded ({kind}).",
        "The GPU or the volume may have failed; if it happens again, please report it to support.",
    )


def _is_damage(error: Exception) -> bool:
    """Whether the error comes from damaged files, so that a retry would fail, too."""
    text = str(error)
    if isinstance(error, SafetensorError):
        return "os error" not in text
    if isinstance(error, OSError):
        return error.errno is None  # raised by transformers itself, because a file is missing
    if isinstance(error, RuntimeError):
        return "size mismatch" in text or "ignore_mismatched_sizes" in text
    return isinstance(error, KeyError)


def _keep_constants(model: torch.nn.Module) -> None:
    """Keep bitsandbytes from changing the quantisation constants when the model is evaluated on a CPU.

    On newer CPUs it would repack each weight in the first evaluation and round the weight's constants. Training would
    go on with a slightly different model, and a run that resumes would get other numbers.
    """
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


@dataclass(frozen=True)
class Lora:
    """A base model with LoRA attached."""

    model: PeftModel
    targets: Targets
    coverage: Counter[str]
    """How many modules carry LoRA, by target."""
    trainable: int
    """How many weights train."""
    published: int
    """How many weights the published adapter holds."""

    @property
    def adapter_bytes(self) -> int:
        """The size of the published adapter, which is in bf16."""
        return 2 * self.published

    def sentence(self) -> str:
        """A sentence for the user: which modules carry LoRA, how many weights train, how large the adapter will be."""
        modules = ", ".join(f"{name} ×{self.coverage[name]}" for name in self.targets.named)
        size_mb = self.adapter_bytes / 1e6
        return f"LoRA on {modules}: {self.trainable:,} weights train, the adapter takes {size_mb:,.1f} MB."


def attach_lora(model: PreTrainedModel, parameters: Hyperparameters) -> Lora:
    """Attach LoRA to the modules that `choose_targets` gives, and make sure that none was left out.

    Raises:
        HyperparametersInvalidError: the experts can't be trained, or not with these hyperparameters.
        BaseModelUnknownError: modules that should carry LoRA do not exist.
    """
    from peft import LoraConfig, get_peft_model

    targets = targets_of(model, parameters)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=parameters.rank,
        lora_alpha=parameters.lora_alpha,
        lora_dropout=parameters.dropout,
        target_modules=list(targets.modules),
        use_rslora=parameters.use_rslora,
        use_dora=parameters.use_dora,
        bias="none",
    )
    with without_peft_conversion(model.config.model_type, targets), posing_as_whole(model):
        adapted = get_peft_model(model, config)
    coverage = check_coverage(adapted, targets)
    size = ExpertLoraSize()
    if targets.routed_experts:
        size = count_expert_lora(adapted, parameters.rank)
        coverage.update(dict.fromkeys(ROUTED, attach_expert_lora(adapted, config)))
    trainable = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    return Lora(adapted, targets, coverage, trainable, trainable + size.published - size.trained)


def tensor_bytes(model: torch.nn.Module) -> dict[str, int]:
    """The bytes of a loaded model, by kind: `quantised` weights, their `constants`, and the `rest`."""
    sizes: dict[str, Any] = {"quantised": 0, "constants": 0, "rest": 0}
    for parameter in model.parameters():
        size = parameter.numel() * parameter.element_size()
        sizes["quantised" if parameter.dtype is torch.uint8 else "rest"] += size
    for module in model.modules():
        state = getattr(module, "quant_state", None) or getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            sizes["constants"] += _constant_bytes(state)
    return sizes


def _constant_bytes(state: Any) -> int:
    tensors = [state.absmax, state.code, getattr(state, "offset", None)]
    nested = getattr(state, "state2", None)
    if nested is not None:
        tensors += [nested.absmax, nested.code]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
