"""The states of the random generators that forward passes draw from: torch's, on the CPU and on the GPU that trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RandomStates:
    """The states at one moment."""

    cpu: torch.Tensor
    gpu: torch.Tensor | None

    @classmethod
    def now(cls) -> RandomStates:
        """Read the present states. That does not wait for the GPU, since its generator's state is kept by the CPU."""
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None)

    def restore(self) -> None:
        """Make the generators go on from these states."""
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu)
