"""Estimates time and cost of a training as a range.

`training_estimate` in SQL computes the same, since neither can ask the other: the application asks the database while
perhaps no worker runs, and the worker refuses a job, or prints an estimate, without a call to the database. So a change
of the formula is made in both, and `test_estimate_sql.py` compares the two on random work, GPUs and terms, to the last
digit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_contract.batches import steps_of_epoch
from lora_contract.hyperparameters import Method
from lora_worker.money.terms import SpeedSource, Terms


@dataclass(frozen=True, slots=True)
class Work:
    """The training to estimate. At least one of `tokens` and `pairs` must be known; None or 0 means unknown."""

    tokens: int | None = None
    """Tokens of the dataset, each pair with its history."""
    pairs: int | None = None
    """Pairs of a question and an answer."""
    pairs_per_conversation: float = 1
    """Average number of pairs in a conversation. The pairs repeat its beginning; merged, they are trained as one."""
    epochs: int = 3
    batch_size: int = 4
    max_steps: int | None = None
    base_model: str | None = None
    gpu_type: str | None = None
    gpus: int = 1
    """How many GPUs share the steps; no more than the endpoint has."""
    method: Method = "sft"
    """The training method. Of `dpo`, `tokens` are those of both answers, each with its prompt."""


@dataclass(frozen=True, slots=True)
class Range:
    """The lowest and the highest value to expect."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimated time in seconds and cost in USD, and the numbers that were used for it."""

    seconds: Range
    cost: Range
    tokens: int
    gpu_type: str
    gpu_count: int
    price_per_hour: float
    tokens_per_second: Range
    """The speeds of the longest and of the shortest time."""
    speed_source: SpeedSource
    speed_runs: int
    """How many finished runs of this installation the speed is known from; 0 where it is the table's."""
    assumptions: tuple[str, ...]


def estimate(work: Work, terms: Terms) -> Estimate | None:
    """Estimate time and cost of a training; None if the GPU or the size of the dataset is unknown.

    The lowest value assumes that overlapping pairs are merged and the fast end of the speed, the highest value full
    batches of unmerged rows and its slow end. Several GPUs divide the lowest time of the steps by their number, but
    by no more than the examples of a step, which they share out (`lora_contract.batches.share_step`): that is the most
    that they can gain. They leave the highest as it is on one: how much of it is lost to waiting was not measured. All
    of the endpoint's are billed.
    """
    gpu, count = terms.gpu(work.gpu_type), terms.endpoint_gpu_count
    method = terms.methods[work.method]
    per_pair = terms.tokens_per_pair * method.sequences
    tokens = work.tokens or (work.pairs or 0) * per_pair
    if gpu is None or tokens <= 0:
        return None
    speed = terms.speed(work.base_model, gpu)
    pairs = work.pairs or math.ceil(tokens / per_pair)
    # Only sft merges the overlapping pairs of a conversation.
    together = max(work.pairs_per_conversation, 1.0) if work.method == "sft" else 1.0
    examples = math.ceil(pairs / together)
    epoch_steps = steps_of_epoch(answers=pairs, examples=examples, batch_size=work.batch_size)
    all_steps = epoch_steps * work.epochs
    steps = min(all_steps, work.max_steps) if work.max_steps else all_steps
    merged = 2.0 / (together + 1.0)
    learned = tokens * method.share(work.epochs)
    least = learned * work.epochs * steps / all_steps * merged
    # A step learns at least one whole conversation, even if that has more answers than the batch size.
    most = learned * steps * max(work.batch_size / pairs, work.epochs / all_steps)
    low = terms.overhead_low.once + terms.overhead_low.each_epoch * work.epochs
    low += least / (speed.high * min(work.gpus, examples / epoch_steps))
    high = terms.overhead_high.once + terms.overhead_high.each_epoch * work.epochs
    high += most / speed.low
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
        tokens_per_second=Range(speed.low, speed.high),
        speed_source=speed.source,
        speed_runs=speed.runs,
        assumptions=terms.assumptions,
    )
