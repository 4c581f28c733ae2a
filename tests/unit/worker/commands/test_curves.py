"""Curves of any numbers, or of none, are drawn within their width."""

from __future__ import annotations

import math

import pytest

from lora_worker.commands.curves import draw_curve, sparkline


def test_sparkline_falls_and_rises_with_its_values() -> None:
    assert sparkline([3, 2, 1, 2, 3], 10) == "█▅▁▅█"
    assert sparkline([8.0] * 3, 10) == "▁▁▁"


@pytest.mark.parametrize("values", [[], [None], [math.nan], [math.inf, None]])
def test_sparkline_of_nothing_is_empty(values: list[float | None]) -> None:
    assert sparkline(values, 10) == ""


@pytest.mark.parametrize("count", [1, 9, 10, 11, 999])
def test_sparkline_has_at_most_its_width(count: int) -> None:
    line = sparkline([float(number) for number in range(count)], 10)
    assert len(line) == min(count, 10)
    assert list(line) == sorted(line)


def test_drawn_curve_goes_from_corner_to_corner() -> None:
    assert draw_curve([(0, 1), (10, 0)], width=2, height=1, x_range=(0, 10), y_range=(0, 1)) == ["⠑⢄"]
    flat = draw_curve([(5, 7)], width=3, height=2, x_range=(5, 5), y_range=(7, 7))
    assert [len(line) for line in flat] == [3, 3]
