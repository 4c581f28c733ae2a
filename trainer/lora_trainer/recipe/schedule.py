"""The learning rate of each step: warm-up, then decay. No step is trained at rate 0."""

from __future__ import annotations

import math

_WARM_UP_SHARE = 0.03
_LEAST_STEPS_TO_WARM_UP = 30
"""Below, the share is less than a step, and rounding it up would take a step from a training that has few."""


def warm_up_steps(total_steps: int, asked: int | None) -> int:
    """Steps below the full rate at the beginning: what was asked for, else 3 % of a training long enough for that."""
    if asked is not None:
        return asked
    return round(_WARM_UP_SHARE * total_steps) if total_steps >= _LEAST_STEPS_TO_WARM_UP else 0


def rate_share(step: int, *, total_steps: int, warm_up: int, decay: str) -> float:
    """The share of the full rate that the step after `step` steps has; above 0 for each of `total_steps`.

    `decay` is `cosine`, `linear` or `constant`.
    """
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    done = min((step - warm_up) / max(total_steps - warm_up, 1), 1.0)
    if decay == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1 - done if decay == "linear" else 1.0
