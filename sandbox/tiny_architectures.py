"""The true architectures of the models that users train, scaled down to about a million weights.

Every part is there: grouped-query attention, linear attention, routers, fused experts, a shared
expert. Widths are multiples of 64, the block of the 4-bit quantisation.
"""

from __future__ import annotations

from typing import Any

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "qwen3_next")

_WIDTHS: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": None,
}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
_OWN: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "qwen3": {"head_dim": 32},
    "qwen3_moe": {**_EXPERTS, "head_dim": 32, "num_experts": 16},
    "qwen3_next": {
        **_EXPERTS,
        "head_dim": 32,
        "num_experts": 16,
        "shared_expert_intermediate_size": 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "tie_word_embeddings": False,
    },
}


def tiny_config(architecture: str, **tokens: int | None) -> Any:
    """The configuration of a tiny model; `tokens` are the vocabulary's size and special ids."""
    from transformers import AutoConfig

    return AutoConfig.for_model(architecture, **{**_WIDTHS, **_OWN.get(architecture, {}), **tokens})
