"""What vLLM refuses to load, checked in an adapter's configuration before its weights are read.

The rules of `PEFTHelper.validate_legal` (vLLM 0.33.0, lora/peft_helper.py), in words of our own: callers only see that
an adapter was found and could not be loaded.
"""

from __future__ import annotations

from typing import Any

_REQUIRED = {"r", "lora_alpha", "target_modules"}
_PLAIN_INITS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}
"""Initialisations that leave the base's weights as they are."""
_HEADS = {"classifier", "score"}


def check_loadable(config: dict[str, Any], *, max_rank: int) -> None:
    """Check an adapter's configuration.

    Raises:
        ValueError: says why vLLM would not load the adapter.
    """
    if missing := _REQUIRED - config.keys():
        raise ValueError(f"the configuration lacks {', '.join(sorted(missing))}")
    rank, init = max([config["r"], *(config.get("rank_pattern") or {}).values()]), config.get("init_lora_weights", True)
    faults = {
        "the rank is not positive": rank <= 0,
        f"the rank {rank} is above max_lora_rank {max_rank}": rank > max_rank,
        "DoRA is not supported": config.get("use_dora"),
        "a bias is not supported": config.get("lora_bias") or config.get("bias", "none") != "none",
        "activated LoRA is not supported": config.get("alora_invocation_tokens"),
        "replicated layers are not supported": config.get("layer_replication"),
        "other saved modules than a classifier's head are not supported": set(config.get("modules_to_save") or ())
        - _HEADS,
        "its initialisation changes the base": isinstance(init, str) and init.lower() not in _PLAIN_INITS,
    }
    if wrong := [fault for fault, holds in faults.items() if holds]:
        raise ValueError("; ".join(wrong))
