"""Chooses the implementation of attention, and provides one that keeps packed examples apart without a mask.

Examples that are packed into one row must not see each other. For that, SDPA needs a mask of all tokens against all,
with which it can't use its fast kernels, and whose memory grows with the square of the row's length. Instead,
`torch.nn.attention.varlen` takes the positions at which the examples begin, which TRL's collator gives with each batch,
and the width of a sliding window.
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

from lora_trainer.models.targets import ARCHITECTURES

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from lora_trainer.models.hardware import Hardware

VARLEN = "varlen"
FLASH = "flash_attention_2"
SDPA = "sdpa"
_MASK_BYTES = 4
"""For each pair of tokens: what the mask is made from and the mask, a byte each, and its form as a bf16 bias."""


def choose_attention(config: PretrainedConfig, hardware: Hardware) -> str:
    """The fastest implementation that is correct for this model on this hardware; its name in transformers.

    An architecture that is not in the trainer's table may need a mask of its own, which varlen attention does not take.
    """
    if not hardware.is_gpu or hardware.dtype is not torch.bfloat16:
        return SDPA
    if config.model_type in ARCHITECTURES and has_varlen():
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


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 see below
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each example of a packed row, or of rows with one example each.

    Shapes: `query` is (rows, heads, tokens, width), `key` and `value` are the same with as many heads or fewer; packed,
    there is one row. `cu_seq_lens_q` is (examples + 1,) int32: where each example begins, and where the last one ends.
    `sliding_window` is how many tokens each token sees, itself included. The result is (rows, tokens, heads, width).

    Rows with one example each are padded on the right, so no real token looks at padding, and what is computed for
    padding is not used: no mask is needed. They go through SDPA, unless they exceed the window.
    """
    rows, _, tokens, _ = query.shape
    if cu_seq_lens_q is None or max_length_q is None:
        if sliding_window is None or tokens <= sliding_window:
            return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, is_causal=True, **options)
        cu_seq_lens_q = torch.arange(0, (rows + 1) * tokens, tokens, dtype=torch.int32, device=query.device)
        max_length_q = tokens
    query, key, value = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    mixed = _kernel(query, key, value, cu_seq_lens_q, int(max_length_q), scaling, sliding_window)
    return mixed.view(rows, tokens, *mixed.shape[1:]), None


def _kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    dtype = query.dtype
    query, key, value = (tensor.to(torch.bfloat16) for tensor in (query, key, value))
    # Since torch 2.12, fewer key heads than query heads must be allowed with `enable_gqa`. Before, they always were.
    grouped: dict[str, Any] = {"enable_gqa": True} if _needs_enable_gqa() else {}
    # How many earlier tokens each token sees, and how many later ones.
    seen = (-1 if window is None or window >= longest else window - 1, 0)
    mixed = varlen_attn(query, key, value, starts, starts, longest, longest, scale=scale, window_size=seen, **grouped)
    assert isinstance(mixed, torch.Tensor)  # it is a tuple only if further results are asked for
    return mixed.to(dtype)


def switch_off_cudnn() -> None:
    """Keep SDPA from choosing cuDNN's attention, which builds a graph for each new length of a row: 0.4 s each."""
    torch.backends.cuda.enable_cudnn_sdp(False)


@cache
def _needs_enable_gqa() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


AttentionInterface.register(VARLEN, varlen_attention)
AttentionMaskInterface.register(VARLEN, flash_attention_mask)
