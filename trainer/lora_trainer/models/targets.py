"""Which modules of each architecture carry LoRA, and which of them are not quantised.

There is a table of architectures because PEFT's defaults are wrong for models with fused experts. PEFT takes the
names `gate_proj`, `up_proj` and `down_proj` for LoRA on every expert (3.4 billion trained weights on a model of 80
billion). If the experts are quantised, it attaches nothing and gives no warning. So the table names no modules of
routed experts, and only on request those of a shared expert. After LoRA was attached, the modules that carry it are
counted. What serving makes of them stands in the contract's `serving_rules.py`.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_trainer.errors import BaseModelUnknownError, HyperparametersInvalidError
from lora_trainer.models.packages import can_import

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from lora_contract.hyperparameters import Hyperparameters

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_DENSE = (*_ATTENTION, "gate_proj", "up_proj", "down_proj")
_LINEAR_ATTENTION = ("in_proj_qkvz", "in_proj_ba", "out_proj")
_SHARED_EXPERT = ("shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert.down_proj")


@dataclass(frozen=True)
class Architecture:
    """What the trainer knows about a `model_type` of transformers."""

    targets: tuple[str, ...]
    """The modules that carry LoRA, by the last parts of their names."""
    shared_expert: tuple[str, ...] = ()
    """Modules that carry LoRA as well when `target_experts` is set."""
    routed_experts: bool = False
    """Whether `target_experts` puts LoRA on every routed expert."""
    high_precision: tuple[str, ...] = ("lm_head",)
    """Modules that are not quantised: rounding would disturb all outputs, or the 4-bit kernels can't take the shape."""
    packing_needs: tuple[str, ...] = ()
    """Packages without which packed examples would see each other."""


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(_DENSE),
    "mistral": Architecture(_DENSE),
    "qwen2": Architecture(_DENSE),
    "qwen3": Architecture(_DENSE),
    "mixtral": Architecture(_ATTENTION),
    "qwen3_moe": Architecture(_ATTENTION, routed_experts=True),
    "qwen3_next": Architecture(
        (*_ATTENTION, *_LINEAR_ATTENTION),
        shared_expert=_SHARED_EXPERT,
        # shared_expert_gate has one output, and the 4-bit kernels need a multiple of 32.
        high_precision=("lm_head", "shared_expert_gate"),
        packing_needs=("causal_conv1d", "fla"),
    ),
}

ROUTED = ("experts.gate_up_proj", "experts.down_proj")
"""The fused weights of a layer's routed experts."""

_NEVER = ("router", "gate", "shared_expert_gate", "lm_head", "embed_tokens", "score")
"""Modules of unknown architectures that never carry LoRA: routers, heads, embeddings. Last parts of their names."""


@dataclass(frozen=True)
class Targets:
    """The modules that carry LoRA, by the last parts of their names."""

    modules: tuple[str, ...]
    note: str | None = None
    """A sentence for the user, where there is something to know about the choice."""
    peft_would_convert: bool = False
    """Whether PEFT would replace these names by others. It must be kept from that here, and when it is loaded."""
    routed_experts: bool = False
    """Whether every routed expert carries LoRA, too."""

    @property
    def named(self) -> tuple[str, ...]:
        """All that carries LoRA: the modules, and the fused weights of routed experts."""
        return (*self.modules, *(ROUTED if self.routed_experts else ()))


def high_precision_modules(model_type: str) -> list[str]:
    """The modules that are not quantised, by parts of their names."""
    known = ARCHITECTURES.get(model_type)
    return list(known.high_precision if known else ("lm_head", "router", "shared_expert_gate"))


def targets_of(model: PreTrainedModel, parameters: Hyperparameters) -> Targets:
    """What carries LoRA in a training with these hyperparameters.

    Raises:
        HyperparametersInvalidError: the experts can't be trained, or not with these hyperparameters.
        BaseModelUnknownError: the model has no module that can carry LoRA.
    """
    targets = choose_targets(model, target_experts=parameters.target_experts)
    # The adapter is published for each expert and fused again by PEFT, which doubles rank and alpha of gate and up.
    asked = {
        "dropout": parameters.dropout,
        "use_dora": parameters.use_dora,
        "use_rslora": parameters.use_rslora,
    }
    if targets.routed_experts and (wrong := [name for name, value in asked.items() if value]):
        raise HyperparametersInvalidError(
            f"LoRA on routed experts can't be trained with {' and '.join(wrong)}.",
            f"Leave out {' and '.join(wrong)}, or set target_experts to false.",
        )
    return targets


def choose_targets(model: PreTrainedModel, *, target_experts: bool) -> Targets:
    """The modules of `model` that shall carry LoRA.

    Raises:
        HyperparametersInvalidError: `target_experts` is set, but the experts can't be trained.
        BaseModelUnknownError: the model has no module that can carry LoRA.
    """
    model_type = str(model.config.model_type)
    known = ARCHITECTURES.get(model_type)
    if known is None:
        modules = _all_linear(model, model_type)
        return Targets(
            modules,
            note=f"The architecture {model_type} is not in the trainer's table: LoRA goes on "
            f"{', '.join(modules)}; routers, heads and embeddings are left alone.",
        )
    if not target_experts:
        return Targets(known.targets)
    if known.routed_experts:
        return Targets(
            known.targets,
            note="LoRA is on every routed expert, too, published under each expert's own name. PEFT loads that; check "
            "that vLLM's answers with the adapter differ from the base's.",
            routed_experts=True,
        )
    if not known.shared_expert:
        raise HyperparametersInvalidError(
            f"target_experts is set, but LoRA can't be trained on the 4-bit routed experts of {model_type}."
            if model_type in _fused_expert_types()
            else f"target_experts is set, but {model_type} has no experts.",
            "Set target_experts to false.",
        )
    return Targets(
        (*known.targets, *known.shared_expert),
        note="LoRA is on the shared expert, too; the routed experts stay as they are.",
        peft_would_convert=True,
    )


def packing_decision(model_type: str, asked: bool | None) -> tuple[bool, str | None]:
    """Whether examples are packed, and a note for the user if that is not what `asked` says; None leaves it open."""
    known = ARCHITECTURES.get(model_type)
    if asked is False:
        return False, None
    if known is None:
        reason = f"the architecture {model_type} is not known to keep packed examples apart"
    elif missing := [name for name in known.packing_needs if importlib.util.find_spec(name) is None]:
        reason = f"{model_type} keeps packed examples apart only with {' and '.join(missing)}"
    elif broken := [name for name in known.packing_needs if not can_import(name)]:
        # The image was meant to have them. So report it even if nobody asked: without them training is slow, too.
        return False, f"Packing is off: {' and '.join(broken)} can't be imported here, which {model_type} needs for it."
    else:
        return True, None
    return False, f"Packing is off: {reason}." if asked else None


def check_coverage(model: nn.Module, targets: Targets) -> Counter[str]:
    """How many modules carry LoRA, by target.

    Raises:
        BaseModelUnknownError: no module carries LoRA for one of the targets, about which PEFT does not complain.
    """
    carrying = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    covered = Counter(target for name in carrying for target in targets.modules if name.endswith(f".{target}"))
    if missing := [target for target in targets.modules if not covered[target]]:
        raise BaseModelUnknownError(
            f"The base model has no module named {', '.join(missing)} that can carry LoRA.",
            "Its architecture differs from others of its name; the trainer's table needs an entry for it.",
        )
    return covered


@contextmanager
def without_peft_conversion(model_type: str, targets: Targets) -> Iterator[None]:
    """While this context is open, PEFT does not take a shared expert's names for those of all experts (peft#3711)."""
    if not targets.peft_would_convert:
        yield
        return
    import peft.utils.transformers_weight_conversion as conversion

    before = conversion._MODEL_TO_CONVERSION_PATTERN  # noqa: SLF001 there is no public switch
    conversion._MODEL_TO_CONVERSION_PATTERN = {  # noqa: SLF001
        name: pattern for name, pattern in before.items() if name != model_type
    }
    try:
        yield
    finally:
        conversion._MODEL_TO_CONVERSION_PATTERN = before  # noqa: SLF001


def _fused_expert_types() -> dict[str, Any]:
    """The architectures with fused experts, as PEFT lists them."""
    from peft.utils.transformers_weight_conversion import _MODEL_TO_CONVERSION_PATTERN

    return dict(_MODEL_TO_CONVERSION_PATTERN)


def _all_linear(model: PreTrainedModel, model_type: str) -> tuple[str, ...]:
    """The targets of an architecture that is not in the table: all linear layers but routers, heads and experts."""
    from torch import nn

    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings()
    }
    names -= set(_NEVER)
    if model_type in _fused_expert_types():
        names -= {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
    if not names:
        raise BaseModelUnknownError(f"The architecture {model_type} has no linear layers to put LoRA on.")
    return tuple(sorted(names))
