"""What a training will take and cost, as a range. `estimate_training_cost` in SQL is this function once more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_contract.batches import steps_of_epoch
from lora_worker.money.terms import Terms


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be trained. Of `tokens` and `pairs` one must be known; None or 0 is unknown."""

    tokens: int | None = None
    """Of the dataset once through, histories included."""
    pairs: int | None = None
    pairs_per_conversation: float = 1
    """Pairs of one conversation repeat its beginning, and are trained as one where they can be."""
    epochs: int = 3
    batch_size: int = 4
    max_steps: int | None = None
    base_model: str | None = None
    gpu_type: str | None = None


@dataclass(frozen=True, slots=True)
class Range:
    """From the least that can be expected to the most."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """GPU seconds and USD, and what they were computed with."""

    seconds: Range
    cost: Range
    tokens: int
    gpu_type: str
    gpu_count: int
    price_per_hour: float
    assumptions: tuple[str, ...]


def told(found: Mapping[str, Any]) -> str:
    """An estimate, as SQL or `dataclasses.asdict` gives it, for a terminal."""
    seconds, cost = found["seconds"], found["cost"]
    gpus = f"{found['gpu_count']:.0f} × {found['gpu_type']} (${found['price_per_hour']:.2f} an hour each)"
    return "\n".join(
        [
            f"{_duration(seconds['low'])} to {_duration(seconds['high'])}, ${cost['low']:.2f} to ${cost['high']:.2f},"
            f" on {gpus}: {found['tokens']:,.0f} tokens an epoch.",
            *found["assumptions"],
        ]
    )


def _duration(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def estimate(work: Work, terms: Terms) -> Estimate | None:
    """Seconds and cost of a training; None where the GPU is unknown or nothing is known of the dataset.

    low:  tokens × epochs, overlaps merged, at the fast speed, scaled by the base's active parameters.
    high: whole batches of average rows, at the slow speed, scaled by all of the base's parameters.
    """
    gpu, size, count = terms.gpu(work.gpu_type), terms.size(work.base_model), terms.endpoint_gpu_count
    tokens = work.tokens or (work.pairs or 0) * terms.tokens_per_pair
    if gpu is None or tokens <= 0:
        return None
    pairs = work.pairs or math.ceil(tokens / terms.tokens_per_pair)
    together = max(work.pairs_per_conversation, 1.0)
    examples = math.ceil(pairs / together)
    all_steps = steps_of_epoch(answers=pairs, examples=examples, batch_size=work.batch_size) * work.epochs
    steps = min(all_steps, work.max_steps) if work.max_steps else all_steps
    merged = 2.0 / (together + 1.0)
    least = float(tokens) * work.epochs * steps / all_steps * merged
    # A step is a whole conversation at the least, however few answers it was to have.
    most = float(tokens) * steps * max(work.batch_size / pairs, work.epochs / all_steps)
    low = terms.overhead_low.once + terms.overhead_low.each_epoch * work.epochs
    low += least * size.active / terms.reference.active / (gpu.fast * count)
    high = terms.overhead_high.once + terms.overhead_high.each_epoch * work.epochs
    high += most * size.total / terms.reference.total / (gpu.slow * count)
    hourly = gpu.price_per_hour * count
    return Estimate(
        seconds=Range(math.floor(low), math.ceil(high)),
        cost=Range(
            math.floor((low / 3600.0 * hourly + terms.storage_fee) * 100.0) / 100.0,
            math.ceil((high / 3600.0 * hourly + terms.storage_fee) * 100.0) / 100.0,
        ),
        tokens=tokens,
        gpu_type=gpu.type,
        gpu_count=count,
        price_per_hour=gpu.price_per_hour,
        assumptions=terms.assumptions,
    )
