"""Finds keys in a job's JSON columns that this service does not read.

Some of them are misspelt, or are another library's name for a key of ours. The user wanted to change the training with
them, but they would have no effect, so such a job is refused. Other unknown keys are only mentioned in a note.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import AliasChoices, BaseModel

from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_contract.names import nearest

_NEAR = 0.8
_MAX_SHOWN = 5
_MAX_SHOWN_CHARACTERS = 40

_HYPERPARAMETERS = "hyperparameters"
_GPU_CONFIG = "gpu_config"
_BESIDE = {
    _HYPERPARAMETERS: frozenset({"name", "icon", "description", "details", "preset_id"}),
    _GPU_CONFIG: frozenset({"gpu_memory_gb", "cost_per_gpu_hour", "priority"}),
}
"""Keys that the application writes for its own display, and the one that only a routing table reads. They do not change
the training."""

# Names that other libraries and services use for our keys, without underscores and in small letters.
_OTHER_NAMES = {
    _HYPERPARAMETERS: {
        "lr": "learning_rate", "nepochs": "epochs", "numtrainepochs": "epochs", "r": "rank", "lorar": "rank",
        "bs": "batch_size", "perdevicetrainbatchsize": "batch_size", "trainbatchsize": "batch_size",
        "maxseqlength": "max_length", "maxseqlen": "max_length", "seqlen": "max_length",
        "sequencelength": "max_length", "contextlength": "max_length", "cutofflen": "max_length",
        "lrscheduler": "scheduler", "lrschedulertype": "scheduler", "wd": "weight_decay",
        "valsplit": "validation_share", "valsetsize": "validation_share", "validationsplit": "validation_share",
        "evalsplit": "validation_share", "patience": "early_stopping_patience", "rslora": "use_rslora",
        "dora": "use_dora", "steps": "max_steps", "trainsteps": "max_steps", "model": "base_model",
        "modelid": "base_model", "modelname": "base_model", "basemodelid": "base_model",
        "revision": "base_revision", "randomseed": "seed", "quantisation": "quantization", "loadin4bit": "quantization",
        "precision": "quantization", "dpobeta": "beta", "ktobeta": "beta", "trainingmethod": "method",
        "trainingtype": "method", "adapter": "init_adapter", "adapterid": "init_adapter",
        "parentmodel": "init_adapter", "desirableweights": "desirable_weight",
    },
    _GPU_CONFIG: {"gpu": "type", "gputypeid": "type", "gpus": "count", "gpucount": "count", "ngpus": "count"},
}  # fmt: skip


def _known(model: type[BaseModel], column: str) -> set[str]:
    aliases = [field.validation_alias for field in model.model_fields.values()]
    named = {str(name) for alias in aliases if isinstance(alias, AliasChoices) for name in alias.choices}
    return {*model.model_fields, *named, *_BESIDE[column]}


_KNOWN = {_HYPERPARAMETERS: _known(Hyperparameters, _HYPERPARAMETERS), _GPU_CONFIG: _known(GpuConfig, _GPU_CONFIG)}


def _plain(key: str) -> str:
    return re.sub(r"[^a-z0-9]", "", key.lower())


def _unknown(column: str, value: Any) -> list[str]:
    return [key for key, said in value.items() if said is not None and key not in _KNOWN[column]]


def _meant(column: str, key: str) -> str | None:
    plain = {_plain(known): known for known in sorted(_KNOWN[column] - _BESIDE[column])}
    said = _plain(key[: 2 * _MAX_SHOWN_CHARACTERS])
    near = nearest(said, plain, cutoff=_NEAR)
    return _OTHER_NAMES[column].get(said) or (plain[near] if near else None)


def _shown(key: str) -> str:
    return repr(key[:_MAX_SHOWN_CHARACTERS])


def misspelt_key(column: str, value: dict[str, Any]) -> str | None:
    """Write a sentence about the first misspelt key of `hyperparameters` or `gpu_config`; None if there is none."""
    for key in _unknown(column, value):
        meant = _meant(column, key)
        if meant:
            return (
                f"{column}: {_shown(key)} is no key that is read, and {meant!r} may be meant. "
                "Rename it, or take it away, and start the job again."
            )
    return None


def unread_keys(hyperparameters: object, gpu_config: object) -> list[str]:
    """Write a note for each JSON column of the job that has keys which this service does not know."""
    notes = []
    for column, value in ((_HYPERPARAMETERS, hyperparameters), (_GPU_CONFIG, gpu_config)):
        keys = _unknown(column, value) if isinstance(value, dict) else []
        if keys:
            notes.append(f"{column}: {_listed(keys)} changed nothing; this service knows no such key.")
    return notes


def _listed(keys: Iterable[str]) -> str:
    named = sorted(keys)
    more = len(named) - _MAX_SHOWN
    return ", ".join(map(_shown, named[:_MAX_SHOWN])) + (f" and {more} more" if more > 0 else "")
