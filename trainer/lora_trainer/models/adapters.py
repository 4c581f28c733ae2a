"""Puts the weights of an earlier adapter into the model that is about to train.

The files come from outside. So nothing but safetensors is read, the names and shapes must be exactly those of the new
adapter, and all values finite.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lora_contract.protocol import ADAPTER_FILES
from lora_trainer.errors import InitAdapterUnusableError
from lora_trainer.models.expert_lora import PROJECTIONS, as_trained, experts_with_lora

if TYPE_CHECKING:
    from peft import PeftModel

_CONFIG_NAME, _WEIGHTS_NAME = ADAPTER_FILES
_CHOSEN = {"r": "rank", "lora_alpha": "alpha", "use_dora": "use_dora", "use_rslora": "use_rslora"}
"""Keys of PEFT's configuration that a hyperparameter sets, and that hyperparameter."""
_SAME = (
    *("peft_type", "target_modules", "bias", "lora_bias", "fan_in_fan_out", "modules_to_save", "rank_pattern"),
    *("alpha_pattern", "layers_to_transform", "layer_replication", "init_lora_weights", "target_parameters"),
)
"""Other keys that change what an adapter computes."""
_CHOOSE_ANOTHER = "Choose another adapter, or leave init_adapter out."


def load_earlier_adapter(folder: Path, model: PeftModel, *, base_name: str, base_revision: str | None) -> None:
    """Put the weights of the adapter in `folder` into `model`, whose own adapter has the same configuration.

    Raises:
        InitAdapterUnusableError: it was made for another base, with other hyperparameters, or its files are damaged.
    """
    config = _read_config(folder / _CONFIG_NAME)
    _check_base(config, base_name, base_revision)
    experts = experts_with_lora(model)
    if experts and isinstance(modules := config.get("target_modules"), list):
        # Those of the experts are named only where an adapter is published.
        config["target_modules"] = [name for name in modules if name not in PROJECTIONS]
    _check_config(config, vars(model.peft_config["default"]))
    weights = _read_weights(folder / _WEIGHTS_NAME)
    _put_in(as_trained(weights, experts) if experts else weights, model)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise InitAdapterUnusableError(
            "The earlier adapter's adapter_config.json is not readable as JSON.", _CHOOSE_ANOTHER
        )
    return config


def _check_base(config: dict[str, Any], base_name: str, base_revision: str | None) -> None:
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if name != base_name:
        raise InitAdapterUnusableError(
            f"The earlier adapter was trained on {str(name)[:200]}, and this job is for {base_name}.",
            f"Set base_model to that base. {_CHOOSE_ANOTHER}",
        )
    if revision and base_revision and revision != base_revision:
        raise InitAdapterUnusableError(
            f"The earlier adapter was trained on revision {str(revision)[:60]} of the base, and this job is for "
            f"{base_revision}.",
            f"Set base_revision to that revision. {_CHOOSE_ANOTHER}",
        )


def _check_config(config: dict[str, Any], ours: dict[str, Any]) -> None:
    for key, hyperparameter in _CHOSEN.items():
        if (theirs := config.get(key)) != ours[key]:
            raise InitAdapterUnusableError(
                f"The earlier adapter has {hyperparameter} {str(theirs)[:20]}, and this job {ours[key]}.",
                f"Set {hyperparameter} to {str(theirs)[:20]}. {_CHOOSE_ANOTHER}",
            )
    for key in _SAME:
        if key in ours and _comparable(config.get(key)) != _comparable(ours[key]):
            raise InitAdapterUnusableError(
                f"The earlier adapter was made with another {key} than this job's would be.", _CHOOSE_ANOTHER
            )


def _comparable(value: Any) -> Any:
    """A value of PEFT's configuration without the difference between absent, null and empty, or between orders."""
    if isinstance(value, list | tuple | set) and all(isinstance(entry, str) for entry in value):
        return sorted(value) or None
    return value or None


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError):
        raise InitAdapterUnusableError(
            "The earlier adapter's adapter_model.safetensors is damaged.", _CHOOSE_ANOTHER
        ) from None


def _put_in(weights: dict[str, torch.Tensor], model: PeftModel) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    wanted = {name: tensor.shape for name, tensor in get_peft_model_state_dict(model).items()}
    found = {name: tensor.shape for name, tensor in weights.items() if tensor.is_floating_point()}
    odd = [name for name in weights.keys() | wanted.keys() if found.get(name) != wanted.get(name) or name not in found]
    if odd:
        raise InitAdapterUnusableError(
            f"{len(odd)} matrices of the earlier adapter are missing, or have other names or shapes than this job's.",
            f"It may be of another base or rank. {_CHOOSE_ANOTHER}",
        )
    if broken := sum(not bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise InitAdapterUnusableError(
            f"{broken} matrices of the earlier adapter hold values that are no finite numbers.", _CHOOSE_ANOTHER
        )
    set_peft_model_state_dict(model, weights)
