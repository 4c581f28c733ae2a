"""The curve of a training: which of its points a chart and a manifest keep."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lora_contract.bounds import spread
from lora_contract.protocol import CHART_POINTS, Point

MANIFEST_POINTS = 2000
"""Points of a curve beside those of its chart that a manifest may hold; the log has all of them."""

_VALIDATION_POINTS = 20


def format_log(points: Iterable[Point]) -> str:
    """The content of the log file: each point as a line of JSON, without what it does not know."""
    return "".join(f"{point.model_dump_json(exclude_none=True)}\n" for point in points)


def keep_point(point: Point, *, first_step: int, total_steps: int, limit: int = CHART_POINTS) -> bool:
    """Whether a point lies on the grid of at most `limit` points that the chart keeps.

    The grid follows from `total_steps` alone, so that worker and trainer choose the same points, a
    point once kept stays kept, and repeating an update adds nothing. First, last and validation
    points always stay; the trainer evaluates at most `validation_points(limit)` times.
    """
    if total_steps <= limit or point.step in {first_step, total_steps} or point.validation_loss is not None:
        return True
    room = max(limit - 2 - validation_points(limit), 1)
    return point.step % math.ceil(total_steps / room) == 0


def validation_points(limit: int = CHART_POINTS) -> int:
    """How many validation points a curve of at most `limit` points has room for."""
    return min(_VALIDATION_POINTS, max(limit // 4, 1))


def thin_points(points: Iterable[Point], *, total_steps: int, limit: int = CHART_POINTS) -> list[Point]:
    """The points of a curve that the chart keeps, in order of step, each step once (the last wins)."""
    return _at_most(limit, _on_grid(points, total_steps=total_steps, limit=limit))


def manifest_points(points: list[Point], *, total_steps: int, chart_points: int) -> list[Point]:
    """The points of a curve that its manifest holds: enough for the chart and for a judgement of the whole."""
    by_step = {point.step: point for point in spread(points, MANIFEST_POINTS)}
    by_step |= {point.step: point for point in _on_grid(points, total_steps=total_steps, limit=chart_points)}
    return [by_step[step] for step in sorted(by_step)]


class Curve:
    """A curve that grows by its steps, and its chart, without either being sorted or thinned anew at each of them."""

    def __init__(self, points: Iterable[Point] = (), *, limit: int) -> None:
        self._points = {point.step: point for point in sorted(points, key=lambda point: point.step)}
        self._limit = limit
        self._chart: dict[int, Point] = {}
        self._total_steps = 0

    def __getitem__(self, step: int) -> Point:
        return self._points[step]

    def get(self, step: int) -> Point | None:
        """The point of a step; None where it has none yet."""
        return self._points.get(step)

    def note(self, point: Point) -> None:
        """Take the point of a step that follows all others, or what more is known of a step."""
        self._points[point.step] = point
        if self._total_steps and self._keeps(point):
            self._chart[point.step] = point

    @property
    def points(self) -> list[Point]:
        """All points, in order of step."""
        return list(self._points.values())

    def chart(self, total_steps: int) -> list[Point]:
        """The points that the chart keeps, in order of step."""
        if total_steps != self._total_steps:
            self._total_steps = total_steps
            self._chart = {step: point for step, point in self._points.items() if self._keeps(point)}
        return _at_most(self._limit, list(self._chart.values()))

    def _keeps(self, point: Point) -> bool:
        first_step = next(iter(self._points))
        return keep_point(point, first_step=first_step, total_steps=self._total_steps, limit=self._limit)


def _on_grid(points: Iterable[Point], *, total_steps: int, limit: int) -> list[Point]:
    by_step = {point.step: point for point in points}
    first_step = min(by_step, default=0)
    return [
        by_step[step]
        for step in sorted(by_step)
        if keep_point(by_step[step], first_step=first_step, total_steps=total_steps, limit=limit)
    ]


def _at_most(limit: int, kept: list[Point]) -> list[Point]:
    # A foreign trainer may evaluate at every step; the row limit is the application's, so it wins.
    while len(kept) > limit:
        kept = [*kept[:-1:2], kept[-1]]
    return kept
