"""How rows become optimizer steps: pure arithmetic.

The user's `batch_size` counts the dataset's answers. Merging and packing put several answers into one
row, so a step takes fewer rows; otherwise the same settings would mean a third of the steps, and an
adapter that learned a third. So steps per epoch stay about `answers / batch_size` in every mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_TOKEN_GRID = 64


@dataclass(frozen=True)
class BatchShape:
    """`rows_per_step` rows of at most `row_tokens` tokens make one optimizer step."""

    rows_per_step: int
    row_tokens: int
    packed: bool


def shape_batches(
    lengths: Sequence[int],
    answers: int,
    *,
    batch_size: int,
    max_length: int,
    packing: bool,
    longest_held_out: int = 0,
) -> BatchShape:
    """The shape of a step that learns about `batch_size` answers.

    `lengths` are the tokens of each unpacked row, none above `max_length`; `answers` is how many
    answers they hold together. TRL cuts held-out rows to the same length, so it has room for
    `longest_held_out` tokens, too.
    """
    longest = max(*lengths, longest_held_out)
    if not packing:
        return BatchShape(max(1, round(batch_size * len(lengths) / answers)), longest, packed=False)
    step_tokens = batch_size * sum(lengths) / answers
    grid = math.ceil(step_tokens / _TOKEN_GRID) * _TOKEN_GRID
    row_tokens = min(max(grid, longest), max_length)
    return BatchShape(max(1, round(step_tokens / row_tokens)), row_tokens, packed=True)


def largest_micro_batch(rows_per_step: int, limit: int) -> int:
    """The most rows per forward pass that divide a step evenly, at most `limit`."""
    return max(rows for rows in range(1, rows_per_step + 1) if rows_per_step % rows == 0 and rows <= limit)


def smaller_micro_batch(rows_per_step: int, micro_batch: int) -> int | None:
    """What to try after `micro_batch` rows were too many: about half of them; None at one row."""
    return largest_micro_batch(rows_per_step, micro_batch // 2) if micro_batch > 1 else None
