"""The learning rate of each step: warm-up, then decay. No step is trained at a learning rate of 0."""

from __future__ import annotations

import math

_WARM_UP_SHARE = 0.03
_LEAST_STEPS_TO_WARM_UP = 30
"""A shorter training has no warm-up: 3 % of it are less than one step, and it can spare none of its few steps."""


def warm_up_steps(total_steps: int, asked: int | None) -> int:
    """Steps at the beginning that are trained below the full learning rate.

    `asked` is the user's choice; without one it is 3 % of the steps, or 0 for a training of fewer than 30 steps.
    """
    if asked is not None:
        return asked
    return round(_WARM_UP_SHARE * total_steps) if total_steps >= _LEAST_STEPS_TO_WARM_UP else 0


def rate_share(step: int, *, total_steps: int, warm_up: int, decay: str) -> float:
    """The learning rate of one step, as a share of the full rate: above 0 and at most 1.

    `step` counts from 0, so it is the number of steps trained before. `warm_up` is the number of warm-up steps, and
    `decay` is `cosine`, `linear` or `constant`.
    """
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    done = min((step - warm_up) / max(total_steps - warm_up, 1), 1.0)
    if decay == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1 - done if decay == "linear" else 1.0
