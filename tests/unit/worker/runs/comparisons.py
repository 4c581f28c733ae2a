"""Evaluations as a trainer measures them, for tests of what the worker makes of them."""

from __future__ import annotations

from typing import Any

from lora_contract.evaluation import Comparison, Evaluation, Measure
from sandbox.standin_proof import applied


def compared(
    base: float = 2.31,
    tuned: float = 1.62,
    interval: tuple[float, float] | None = (0.55, 0.83),
    *,
    accuracy: tuple[float, float] = (0.48, 0.61),
    gain: float | None = None,
    conversations: int = 34,
) -> Comparison:
    """A comparison on held-out conversations; by default the gain is the difference of the losses."""
    low, high = interval or (None, None)
    return Comparison(
        base=Measure(loss=base, token_accuracy=accuracy[0], tokens=4_000),
        tuned=Measure(loss=tuned, token_accuracy=accuracy[1], tokens=4_000),
        conversations=1 if interval is None else conversations,
        gain=base - tuned if gain is None else gain,
        gain_low=low,
        gain_high=high,
    )


def evaluated(held_out: Comparison | None = None, change: float = 0.8, *, passed: bool | None = True) -> Evaluation:
    """An evaluation whose loss on general text rose by `change` percent."""
    general = compared(3.0, 3.0 * (1 + change / 100), (-9.0, 9.0), conversations=24)
    return Evaluation(held_out=held_out, general=general, general_change_percent=change, guard_passed=passed)


APPLICATION: dict[str, Any] = {
    **applied("a" * 64), "modules": 84, "tensors": 168, "differing": 9, "trained_loss": 1.62, "served_loss": 1.64,
}  # fmt: skip
"""A proof as a manifest has it."""
