"""Decides how the base model is held while it trains: in 4 bits (NF4), or not quantised (bf16).

In 4 bits the weights take a quarter of the memory, and each forward and backward pass unpacks them. Not quantised, no
pass unpacks anything, and the adapter learns on the very weights with which it is served.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import torch

from lora_trainer.errors import HyperparametersInvalidError

if TYPE_CHECKING:
    from lora_trainer.models.hardware import Hardware

Quantization: TypeAlias = Literal["nf4", "bf16"]
NF4: Quantization = "nf4"
BF16: Quantization = "bf16"
AUTO = "auto"


class Plan(Protocol):
    """What must be known of a memory plan."""

    @property
    def needed(self) -> int:
        """The most bytes that the GPU holds at any time."""

    @property
    def recompute(self) -> bool:
        """Whether activations are recomputed."""


def choose_quantization(
    asked: str,
    hardware: Hardware,
    plan_of: Callable[[Quantization], Plan],
    free_bytes: int,
    *,
    begun: Quantization | None = None,
) -> Quantization:
    """How the base model is held: as `asked`, or for `auto` the better of the two that fit into `free_bytes`.

    `plan_of` gives the fastest plan of a training, and `begun` is how an earlier attempt held the base whose checkpoint
    may be resumed. `auto` keeps to that if it fits here, so that a training goes on as it began. Otherwise it takes
    bf16, unless only 4 bits leave room to keep activations: to recompute them costs a quarter of the speed
    (docs/performance.md), and not to unpack saves a thirtieth.

    Raises:
        HyperparametersInvalidError: bf16 is asked for, but this GPU does not have it.
    """
    has_bf16 = not hardware.is_gpu or hardware.dtype is torch.bfloat16
    if asked == BF16 and not has_bf16:
        raise HyperparametersInvalidError(
            "quantization is bf16, but this GPU can't compute in bf16.",
            "Set quantization to nf4 or auto, or choose a GPU of the Ampere generation or newer.",
        )
    if asked != AUTO:
        return NF4 if asked == NF4 else BF16
    if not hardware.is_gpu:
        return begun or NF4
    if begun is not None and plan_of(begun).needed <= free_bytes:
        return begun
    if not has_bf16 or plan_of(BF16).needed > free_bytes:
        return NF4
    return NF4 if plan_of(BF16).recompute and not plan_of(NF4).recompute else BF16


def begun_anew_note(quantization: Quantization, begun: Quantization | None) -> str | None:
    """A sentence for the user where a training can't go on from an earlier attempt's checkpoint; else None."""
    if begun is None or begun == quantization:
        return None
    held = "in 4 bits" if begun == NF4 else "in bf16"
    now = "in 4 bits" if quantization == NF4 else "in bf16"
    return (
        f"An earlier attempt held the base {held}, for which there was too little memory now: the training began anew, "
        f"with the base {now}."
    )
