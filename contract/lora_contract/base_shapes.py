"""The shapes of the most popular base models, so that memory can be planned without access to the hub.

From the configurations (`config.json`) of the models' repositories; a test of the trainer counts their parameters.
"""

from __future__ import annotations

from typing import Any


def _dense(
    *, hidden: int, intermediate: int, layers: int, heads: int, vocabulary: int, **others: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        **others,
    }


_MISTRAL_7B = _dense(
    hidden=4096, intermediate=14336, layers=32, heads=32, vocabulary=32768, num_key_value_heads=8, sliding_window=None
)
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistralai/Mistral-7B-Instruct-v0.2": ("mistral", {**_MISTRAL_7B, "vocab_size": 32000}),
    "mistralai/Mistral-7B-Instruct-v0.3": ("mistral", _MISTRAL_7B),
    "meta-llama/Meta-Llama-3-8B-Instruct": (
        "llama",
        _dense(hidden=4096, intermediate=14336, layers=32, heads=32, vocabulary=128256, num_key_value_heads=8),
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": (
        "qwen2",
        _dense(hidden=5120, intermediate=27648, layers=64, heads=40, vocabulary=152064, num_key_value_heads=8),
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": (
        "qwen2",
        {
            **_dense(hidden=896, intermediate=4864, layers=24, heads=14, vocabulary=151936, num_key_value_heads=2),
            "tie_word_embeddings": True,
        },
    ),
    "Qwen/Qwen2.5-7B-Instruct": (
        "qwen2",
        _dense(hidden=3584, intermediate=18944, layers=28, heads=28, vocabulary=152064, num_key_value_heads=4),
    ),
    "Qwen/Qwen3-8B": (
        "qwen3",
        _dense(
            hidden=4096, intermediate=12288, layers=36, heads=32, vocabulary=151936, num_key_value_heads=8, head_dim=128
        ),
    ),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": (
        "qwen3_moe",
        _dense(
            hidden=2048,
            intermediate=6144,
            layers=48,
            heads=32,
            vocabulary=151936,
            num_key_value_heads=4,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            moe_intermediate_size=768,
        ),
    ),
    "Qwen/Qwen3-Next-80B-A3B-Instruct": (
        "qwen3_next",
        _dense(
            hidden=2048,
            intermediate=5632,
            layers=48,
            heads=16,
            vocabulary=151936,
            num_key_value_heads=2,
            head_dim=256,
            num_experts=512,
            num_experts_per_tok=10,
            moe_intermediate_size=512,
            shared_expert_intermediate_size=512,
            # Three layers of four have linear attention, with heads of their own.
            full_attention_interval=4,
            linear_num_key_heads=16,
            linear_num_value_heads=32,
            linear_key_head_dim=128,
            linear_value_head_dim=128,
        ),
    ),
}
"""By the name on the hub: the architecture (`model_type`), and the values that differ from its defaults."""
