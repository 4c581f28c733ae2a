"""The order in which items are trained on and evaluated. A batch is a whole optimizer step, or one evaluation pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from lora_contract.batches import share_out


class StepSampler(Sampler[list[int]]):
    """Gives the indices of the items of each optimizer step, for one epoch after the other.

    `answers` and `lengths` hold the answers and tokens of each item. The order depends on the seed and the epoch only,
    so a run that resumes sees the same steps.
    """

    batch_size = 1
    """accelerate wants this attribute; without it, it logs a warning at each forward pass."""

    def __init__(self, answers: Sequence[int], lengths: Sequence[int], steps: int, seed: int) -> None:
        self._answers = answers
        self._lengths = lengths
        self._steps = steps
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order `__iter__` gives. accelerate calls it before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        return iter(share_out(self._answers, self._lengths, self._steps, seed=f"{self._seed}:{self._epoch}"))


class PassSampler(Sampler[list[int]]):
    """Gives the indices of the items of each forward pass of an evaluation: the same in every evaluation."""

    batch_size = 1

    def __init__(self, passes: list[list[int]]) -> None:
        self._passes = passes

    def __len__(self) -> int:
        return len(self._passes)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._passes)
