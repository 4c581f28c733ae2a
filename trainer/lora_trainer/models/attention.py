"""Chooses the implementation of attention, and provides one that keeps packed examples apart without a mask.

Examples that are packed into one row must not see each other. For that, SDPA needs a mask of all tokens against all,
with which it can't use its fast kernels, and whose memory grows with the square of the row's length. Instead,
`torch.nn.attention.varlen` takes the positions at which the examples begin; TRL's collator gives them with each batch.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask
from transformers.utils import is_flash_attn_2_available

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from lora_trainer.models.hardware import Hardware

VARLEN = "varlen"
FLASH = "flash_attention_2"
SDPA = "sdpa"
_MASK_BYTES = 4
"""For each pair of tokens: what the mask is made from and the mask, a byte each, and its form as a bf16 bias."""


def choose_attention(config: PretrainedConfig, hardware: Hardware, *, packed: bool) -> str:
    """The fastest implementation that is correct for these rows on this hardware; its name in transformers."""
    if not hardware.is_gpu or hardware.dtype is not torch.bfloat16:
        return SDPA
    if packed and not _has_sliding_window(config) and has_varlen():
        return VARLEN
    return FLASH if is_flash_attn_2_available() else SDPA


def needs_mask(attention: str, *, packed: bool) -> bool:
    """Whether each forward pass needs a mask of all its tokens against all."""
    return packed and attention == SDPA


def mask_bytes(attention: str, *, packed: bool, rows: int, row_tokens: int) -> int:
    """The bytes of SDPA's mask: of all tokens of a pass if rows are packed, else of the tokens of each row."""
    if attention != SDPA:
        return 0
    if packed:
        return _MASK_BYTES * (rows * row_tokens) ** 2
    return _MASK_BYTES * rows * row_tokens**2 if rows > 1 else 0


@cache
def has_varlen() -> bool:
    """Whether this torch has varlen attention with a causal window and a scale: 2.11 and newer have."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"window_size", "scale"} <= inspect.signature(varlen_attn).parameters.keys()


def _has_sliding_window(config: PretrainedConfig) -> bool:
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return "sliding_attention" in kinds
    return getattr(text, "sliding_window", None) is not None


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each example of a packed row.

    Shapes: `query` is (1, heads, tokens, width), `key` and `value` are the same with as many heads or fewer.
    `cu_seq_lens_q` is (examples + 1,) int32: where each example begins, and where the last one ends. The result is
    (1, tokens, heads, width). Rows of one example each, without padding, go through SDPA.

    Raises:
        ValueError: the rows are padded, which this implementation can't handle.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        if attention_mask is not None:
            raise ValueError("varlen attention takes packed rows, or rows without padding")
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, is_causal=True, **options)
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return _kernel(query, key, value, cu_seq_lens_q, int(max_length_q), scaling)[None], None


def _kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scale: float | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    dtype = query.dtype
    query, key, value = (tensor.to(torch.bfloat16) for tensor in (query, key, value))
    # Since torch 2.12, fewer key heads than query heads must be allowed with `enable_gqa`. Before, they always were.
    grouped: dict[str, Any] = {"enable_gqa": True} if _needs_enable_gqa() else {}
    mixed = varlen_attn(
        query, key, value, starts, starts, longest, longest, scale=scale, window_size=(-1, 0), **grouped
    )
    assert isinstance(mixed, torch.Tensor)  # it is a tuple only if further results are asked for
    return mixed.to(dtype)


@cache
def _needs_enable_gqa() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


AttentionInterface.register(VARLEN, varlen_attention)
AttentionMaskInterface.register(VARLEN, flash_attention_mask)
