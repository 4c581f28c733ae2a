"""How rows become optimizer steps: pure arithmetic, without torch, since the worker's estimate counts the same steps.

The user's `batch_size` counts the dataset's answers. An epoch has `answers / batch_size` steps, rounded up, and its
rows are shared out among them so that all steps learn about as many answers: no step is a small remainder, which the
optimizer would give as large an update as a whole one. Merging and packing change what a forward pass holds, never
what a step learns.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_TOKEN_GRID = 64
_ROOM = 1.25
"""Steps hold equal answers, not equal tokens: a packed row has room for somewhat more than the average step."""


@dataclass(frozen=True)
class BatchShape:
    """`steps_per_epoch` steps, each of about `rows_per_step` rows of at most `row_tokens` tokens.

    A packed row holds as many examples as it has room for; otherwise a row is one example.
    """

    steps_per_epoch: int
    rows_per_step: int
    row_tokens: int
    packed: bool

    def total_steps(self, *, epochs: int, max_steps: int | None) -> int:
        """The optimizer steps of the whole training."""
        steps = self.steps_per_epoch * epochs
        return min(steps, max_steps) if max_steps else steps


def steps_of_epoch(*, answers: int, examples: int, batch_size: int) -> int:
    """Optimizer steps of one epoch: as many as make `batch_size` answers each, and an example each at the least."""
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
    """The shape of steps that learn about `batch_size` answers each.

    `lengths` are the tokens of each example, none above `max_length`; `answers` is how many answers they
    hold together. There is room for `longest_held_out` tokens in a row, too.
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
    """One epoch: the examples of each step, by index; every example once, and answers as even as they can be.

    The same seed gives the same epoch.
    """
    chance = random.Random(seed)  # noqa: S311 an order, no secret
    order = list(range(len(answers)))
    chance.shuffle(order)
    # The largest first, each to the step that has the fewest answers and then the fewest tokens.
    order.sort(key=lambda index: -answers[index])
    fullness = [(0, 0, step) for step in range(steps)]
    shares: list[list[int]] = [[] for _ in range(steps)]
    for index in order:
        held, tokens, step = fullness[0]
        shares[step].append(index)
        heapq.heapreplace(fullness, (held + answers[index], tokens + lengths[index], step))
    chance.shuffle(shares)
    return shares


def forward_passes(
    examples: Sequence[int], lengths: Sequence[int], shape: BatchShape, micro_batch: int
) -> list[list[int]]:
    """Split examples into forward passes of at most `micro_batch` rows of the shape; indices into `lengths`."""
    by_length = sorted(examples, key=lambda index: (-lengths[index], index))
    if not shape.packed:
        # Neighbours in length, so that little is padded; evenly, so that no pass is a remainder.
        passes = math.ceil(len(by_length) / micro_batch)
        return [
            by_length[number * len(by_length) // passes : (number + 1) * len(by_length) // passes]
            for number in range(passes)
        ]
    return list(_packed(by_length, lengths, shape.row_tokens * micro_batch))


def _packed(by_length: Sequence[int], lengths: Sequence[int], room: int) -> Iterator[list[int]]:
    """The longest first, each to the emptiest pass, or to a new one where it does not fit."""
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
    """What to try after `micro_batch` rows were too many: half of them; None at one row."""
    return micro_batch // 2 or None
