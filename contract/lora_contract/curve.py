"""Chooses which points of a training's loss curve are kept in the application's chart and in the manifest."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lora_contract.bounds import spread
from lora_contract.protocol import CHART_POINTS, Point

MANIFEST_POINTS = 2000
"""The most points that a manifest holds in addition to those of the chart. The log file holds every point."""

_VALIDATION_POINTS = 20


def format_log(points: Iterable[Point]) -> str:
    """Write the content of the log file: each point as one line of JSON, without fields that are None."""
    return "".join(f"{point.model_dump_json(exclude_none=True)}\n" for point in points)


def keep_point(point: Point, *, first_step: int, total_steps: int, limit: int = CHART_POINTS) -> bool:
    """Decide whether the chart of at most `limit` points keeps a point.

    The first and the last point and all points with a validation loss are kept; of the others, those whose step is on
    a regular grid. The grid depends on `total_steps` and `limit` alone. So worker and trainer choose the same points,
    a point that was kept once stays kept, and a repeated update adds no new ones. There is room for the validation
    points because the trainer evaluates at most `validation_points(limit)` times.
    """
    if total_steps <= limit or point.step in {first_step, total_steps} or point.validation_loss is not None:
        return True
    room = max(limit - 2 - validation_points(limit), 1)
    return point.step % math.ceil(total_steps / room) == 0


def validation_points(limit: int = CHART_POINTS) -> int:
    """Return how many of at most `limit` points of a curve may be validation points."""
    return min(_VALIDATION_POINTS, max(limit // 4, 1))


def thin_points(points: Iterable[Point], *, total_steps: int, limit: int = CHART_POINTS) -> list[Point]:
    """Select the points that the chart keeps, in order of step. Of several points of one step the last is used."""
    return _at_most(limit, _on_grid(points, total_steps=total_steps, limit=limit))


def manifest_points(points: list[Point], *, total_steps: int, chart_points: int) -> list[Point]:
    """Select the points that the manifest holds: those of the chart, and up to `MANIFEST_POINTS` more.

    The worker can then fill the chart and judge the whole curve even if it received no progress from the run.
    """
    by_step = {point.step: point for point in spread(points, MANIFEST_POINTS)}
    by_step |= {point.step: point for point in _on_grid(points, total_steps=total_steps, limit=chart_points)}
    return [by_step[step] for step in sorted(by_step)]


class Curve:
    """A growing curve and its chart. Adding a point takes constant time: nothing is sorted or thinned again."""

    def __init__(self, points: Iterable[Point] = (), *, limit: int) -> None:
        self._points = {point.step: point for point in sorted(points, key=lambda point: point.step)}
        self._limit = limit
        self._chart: dict[int, Point] = {}
        self._total_steps = 0

    def __getitem__(self, step: int) -> Point:
        return self._points[step]

    def get(self, step: int) -> Point | None:
        """Return the point of a step, or None if that step has no point yet."""
        return self._points.get(step)

    def note(self, point: Point) -> None:
        """Add the point of a new, latest step, or replace the point of an earlier step by a more complete one."""
        self._points[point.step] = point
        if self._total_steps and self._keeps(point):
            self._chart[point.step] = point

    @property
    def points(self) -> list[Point]:
        """Return all points, in order of step."""
        return list(self._points.values())

    def chart(self, total_steps: int) -> list[Point]:
        """Return the points that the chart keeps, in order of step."""
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
    # Another trainer may evaluate at every step, and all those points would be kept. The application reads at most
    # `limit` rows, so the curve is thinned until it fits.
    while len(kept) > limit:
        kept = [*kept[:-1:2], kept[-1]]
    return kept
