"""Curves in a terminal: one line of blocks, or several lines of dots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"
# The bits of a Braille character (Unicode, block 2800), by column and row of its dots, the lowest row first.
_DOTS = ((0x40, 0x04, 0x02, 0x01), (0x80, 0x20, 0x10, 0x08))
_ROWS, _COLUMNS = 4, 2


def finite(values: Iterable[float | None]) -> list[float]:
    """Return those of the values that are numbers and finite."""
    return [value for value in values if value is not None and math.isfinite(value)]


def sparkline(values: Iterable[float | None], width: int) -> str:
    """Draw values as one line of blocks, at most `width` of them; each is the mean of the values that it stands for."""
    known = finite(values)
    if not known:
        return ""
    means = [_mean(known[i * len(known) // width : (i + 1) * len(known) // width]) for i in range(width)]
    drawn = known if len(known) <= width else [mean for mean in means if mean is not None]
    low, high = min(drawn), max(drawn)
    span = high - low or 1.0
    return "".join(_BLOCKS[round((value - low) / span * (len(_BLOCKS) - 1))] for value in drawn)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def draw_curve(
    points: Sequence[tuple[float, float]],
    *,
    width: int,
    height: int,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> list[str]:
    """Draw points (x, y), joined by lines, as `height` lines of `width` Braille characters, the highest first."""
    canvas = [[0] * width for _ in range(height)]
    across, up = width * _COLUMNS - 1, height * _ROWS - 1
    dots = [(_scaled(x, x_range, across), _scaled(y, y_range, up)) for x, y in points]
    for (x0, y0), (x1, y1) in zip(dots, dots[1:] or dots, strict=False):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for step in range(steps + 1):
            x, y = round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps)
            canvas[height - 1 - y // _ROWS][x // _COLUMNS] |= _DOTS[x % _COLUMNS][y % _ROWS]
    return ["".join(chr(0x2800 + cell) for cell in row) for row in canvas]


def _scaled(value: float, of: tuple[float, float], most: int) -> int:
    low, high = of
    return round(min(max((value - low) / ((high - low) or 1.0), 0.0), 1.0) * most)
