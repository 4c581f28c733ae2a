"""How training examples are divided into optimizer steps.

This is plain arithmetic without torch, because the worker's price estimate must count the same steps as the trainer.

The user's `batch_size` is a number of answers. An epoch has `answers / batch_size` steps, rounded up. The examples are
distributed over these steps so that every step learns about the same number of answers. Filling the steps one after the
other would leave a small last step, and the optimizer would give it as large an update as a full one. Merging
conversations and packing change what one forward pass holds; they never change what one step learns.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_TOKEN_GRID = 64
_ROOM = 1.25
"""Row length over the tokens of an average step. Steps have equal answers, not equal tokens, so some need more room."""


@dataclass(frozen=True)
class BatchShape:
    """The size of the batches: each step has about `rows_per_step` rows of at most `row_tokens` tokens.

    With `packed`, a row holds as many examples as fit into it; without, a row is one example.
    """

    steps_per_epoch: int
    rows_per_step: int
    row_tokens: int
    packed: bool

    def total_steps(self, *, epochs: int, max_steps: int | None) -> int:
        """Count the optimizer steps of the whole training; `max_steps` cuts it short where it is set."""
        steps = self.steps_per_epoch * epochs
        return min(steps, max_steps) if max_steps else steps


def steps_of_epoch(*, answers: int, examples: int, batch_size: int) -> int:
    """Count the optimizer steps of one epoch.

    A step learns `batch_size` answers. There are never more steps than examples, since a step needs at least one.
    """
    return max(1, min(math.ceil(answers / batch_size), examples))


def shape_batches(
    lengths: Sequence[int],
    answers: int,
    *,
    batch_size: int,
    max_length: int,
    packing: bool,
    longest_held_out: int = 0,
) -> BatchShape:
    """Choose the batch shape for steps that learn about `batch_size` answers each.

    Args:
        lengths: tokens of each training example; none is above `max_length`.
        answers: the number of answers in all examples together.
        batch_size: answers that one step learns.
        max_length: the most tokens that a row may have.
        packing: whether several examples may share a row.
        longest_held_out: tokens of the longest validation example, which must fit into a row, too.
    """
    steps = steps_of_epoch(answers=answers, examples=len(lengths), batch_size=batch_size)
    longest = max(*lengths, longest_held_out)
    if not packing:
        return BatchShape(steps, math.ceil(len(lengths) / steps), longest, packed=False)
    step_tokens = sum(lengths) / steps
    grid = math.ceil(_ROOM * step_tokens / _TOKEN_GRID) * _TOKEN_GRID
    row_tokens = min(max(grid, longest), max_length)
    return BatchShape(steps, math.ceil(step_tokens / row_tokens), row_tokens, packed=True)


def share_out(answers: Sequence[int], lengths: Sequence[int], steps: int, *, seed: str) -> list[list[int]]:
    """Distribute the examples of one epoch over its steps; returns the indices of each step's examples.

    Every example is used once, and the steps have nearly equal numbers of answers. `answers` and `lengths` hold the
    answers and tokens of each example. The result depends only on the arguments: the same seed gives the same epoch.
    """
    chance = random.Random(seed)  # noqa: S311 it decides an order and guards no secret
    order = list(range(len(answers)))
    chance.shuffle(order)
    # Greedy balancing: take the examples with most answers first, and give each to the step that has the fewest
    # answers so far; among equal steps, to the one with the fewest tokens.
    order.sort(key=lambda index: -answers[index])
    fullness = [(0, 0, step) for step in range(steps)]
    shares: list[list[int]] = [[] for _ in range(steps)]
    for index in order:
        held, tokens, step = fullness[0]
        shares[step].append(index)
        heapq.heapreplace(fullness, (held + answers[index], tokens + lengths[index], step))
    chance.shuffle(shares)
    return shares


def share_step(examples: Sequence[int], lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Share the examples of a step out among so many GPUs, which get about the same number of tokens.

    `examples` and the returned lists hold indices into `lengths`, which are token counts. Parts may be empty.
    """
    shares: list[list[int]] = [[] for _ in range(parts)]
    fullness = [(0, part) for part in range(parts)]
    for index in sorted(examples, key=lambda index: (-lengths[index], index)):
        tokens, part = fullness[0]
        shares[part].append(index)
        heapq.heapreplace(fullness, (tokens + lengths[index], part))
    return shares


def forward_passes(
    examples: Sequence[int], lengths: Sequence[int], shape: BatchShape, micro_batch: int
) -> list[list[int]]:
    """Split the examples of a step into forward passes of at most `micro_batch` rows.

    `examples` and the returned lists hold indices into `lengths`, which are token counts.
    """
    by_length = sorted(examples, key=lambda index: (-lengths[index], index))
    if not shape.packed:
        # Examples of similar length share a pass, so that little padding is needed. All passes get about the same
        # number of examples: a small last pass would use the GPU badly.
        passes = math.ceil(len(by_length) / micro_batch)
        return [
            by_length[number * len(by_length) // passes : (number + 1) * len(by_length) // passes]
            for number in range(passes)
        ]
    return list(_packed(by_length, lengths, shape.row_tokens * micro_batch))


def _packed(by_length: Sequence[int], lengths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Fill passes of `room` tokens: the longest example first, into the emptiest pass, or a new one if it won't fit."""
    passes: list[tuple[int, int, list[int]]] = []
    for index in by_length:
        if passes and passes[0][0] + lengths[index] <= room:
            tokens, number, held = passes[0]
            held.append(index)
            heapq.heapreplace(passes, (tokens + lengths[index], number, held))
        else:
            heapq.heappush(passes, (lengths[index], len(passes), [index]))
    return (held for _, _, held in sorted(passes))


def smaller_micro_batch(micro_batch: int) -> int | None:
    """Return the micro-batch to try after the GPU ran out of memory: half of the rows, or None below one row."""
    return micro_batch // 2 or None
