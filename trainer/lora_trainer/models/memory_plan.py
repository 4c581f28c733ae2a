"""What a training takes of the GPU's memory, by purpose: the plan, its table to read, and whether it fits.

`lora_trainer.models.plan` computes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lora_contract.words import counted
from lora_trainer.errors import DoesNotFitError
from lora_trainer.models.quantization import BF16, NF4, Quantization

OVERHEAD = "CUDA and fragmentation"
_HELD: dict[Quantization, str] = {NF4: "in 4 bits", BF16: "not quantised"}
_CARDS_GB = (16, 24, 48, 80, 96, 141, 180)


@dataclass(frozen=True)
class MemoryPlan:
    """How many bytes a training takes on the GPU, by purpose."""

    row_tokens: int
    micro_batch: int
    """Rows per forward pass."""
    recompute: bool
    """Whether the backward pass computes each layer's activations again, instead of keeping them."""
    lean: bool
    """Whether the backward pass computes the gated product of each MLP again, where it keeps all else."""
    quantization: Quantization
    """How the base model is held."""
    rank: int
    weights: dict[str, int]
    """The base model's bytes, by purpose."""
    training: dict[str, int]
    """The bytes that training takes in addition, by purpose."""
    loading_peak: int
    """The most bytes that the GPU holds while the model is loaded."""
    trainable: int
    """How many weights train."""
    published: int
    """How many weights the published adapter holds."""
    checkpoint_bytes: int
    """The base model's bytes on the disk, in bf16."""

    @property
    def weight_bytes(self) -> int:
        """The bytes of the loaded base model."""
        return sum(self.weights.values())

    @property
    def total(self) -> int:
        """The most bytes that the GPU holds while training."""
        return self.weight_bytes + sum(self.training.values())

    @property
    def allocated(self) -> int:
        """The part of `total` that torch allocates for tensors, as `torch.cuda.max_memory_allocated` reports it."""
        return self.total - self.training[OVERHEAD]

    @property
    def needed(self) -> int:
        """The most bytes that the GPU holds at any time, including while loading."""
        return max(self.total, self.loading_peak)

    @property
    def adapter_bytes(self) -> int:
        """The bytes of the published adapter, in bf16."""
        return 2 * self.published


def check_plan(plan: MemoryPlan, gpu_bytes: int, gpu_name: str) -> None:
    """Refuse a training that does not fit the GPU. `gpu_bytes` is the memory that no other process holds.

    Raises:
        DoesNotFitError: names the bytes needed, the bytes there are, and what to change.
    """
    needed = plan.needed
    if needed <= gpu_bytes:
        return
    card = next((size for size in _CARDS_GB if size * 1e9 >= needed), None)
    larger = f"choose a GPU with {card} GB or more" if card else "choose a smaller base model"
    smaller = "set quantization to nf4, " if plan.quantization == BF16 else ""
    raise DoesNotFitError(
        f"The training needs {needed / 1e9:.1f} GB of GPU memory (weights {plan.weight_bytes / 1e9:.1f} GB, "
        f"{_HELD[plan.quantization]}) at rank {plan.rank} and {plan.row_tokens} tokens a row, but {gpu_name} has "
        f"{gpu_bytes / 1e9:.1f} GB free.",
        f"Lower max_length, {smaller}or {larger}.",
    )


def format_plan(plan: MemoryPlan, *, gpu_name: str | None = None, gpu_bytes: int | None = None) -> str:
    """The plan as a table to read. With `gpu_bytes` its last line says whether it fits `gpu_name`."""
    lines = [
        f"{counted(plan.micro_batch, 'row')} of {plan.row_tokens} tokens per forward pass, rank {plan.rank}, "
        f"base {_HELD[plan.quantization]}, activations {'recomputed' if plan.recompute else 'kept'}"
        f"{' but for gated products' if plan.lean else ''}",
        "",
        *_rows(plan.weights),
        _row("weights", plan.weight_bytes),
        "",
        *_rows(plan.training),
        _row("total while training", plan.total),
        _row("peak while loading", plan.loading_peak),
        "",
        _row(f"adapter ({plan.published:,} weights)", plan.adapter_bytes),
        _row("base model on the disk", plan.checkpoint_bytes),
    ]
    if gpu_bytes is not None:
        fits = plan.needed <= gpu_bytes
        lines += ["", f"{'fits' if fits else 'DOES NOT FIT'} on {gpu_name} ({gpu_bytes / 1e9:.0f} GB)"]
    return "\n".join(lines)


def _rows(sizes: dict[str, int]) -> Iterator[str]:
    return (_row(f"  {name}", size) for name, size in sizes.items() if size)


def _row(name: str, size: int) -> str:
    return f"{name:<42}{size / 1e9:>9.2f} GB" if size >= 1e8 else f"{name:<42}{size / 1e6:>9.2f} MB"
