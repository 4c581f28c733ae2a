"""Charts as numbers: where lines, bars and ticks of the SVG pictures stand.

Coordinates are in a square of 100 by 100, which the page stretches to its width; lines keep their thickness. Labels are
text beside the picture and not in it, since stretched text could not be read on a phone. So the ticks of an axis are
evenly spaced, and the first and last are the ends of the axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lora_worker.words import duration, measured, money, number_of, plain, time_of

_MAX_DRAWN = 300
"""Points drawn of a line: a screen shows no more, and the page is sent every two seconds."""

_Y_TICKS, _X_TICKS = 4, 5

_LARGEST = 1e9
"""Larger steps and losses are left out: beside them, nothing else could be seen."""

_FLAT = 1e-9
"""Values that differ by less, in proportion, are drawn as one."""


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`, with evenly spaced ticks."""

    ticks: tuple[float, ...]

    @property
    def low(self) -> float:
        """The axis's beginning."""
        return self.ticks[0]

    @property
    def high(self) -> float:
        """The axis's end."""
        return self.ticks[-1]

    @property
    def labels(self) -> list[str]:
        """What is written at the ticks."""
        return [f"{tick:,.0f}" if tick == round(tick) else measured(tick) for tick in self.ticks]

    def place(self, value: float) -> float:
        """Return where a value stands, from 0 to 100."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    @property
    def places(self) -> list[float]:
        """Where the ticks stand, from 0 to 100."""
        return [self.place(tick) for tick in self.ticks]


def make_axis(low: float, high: float, ticks: int) -> Axis:
    """Make an axis that holds `low` and `high`, with about so many ticks at round numbers."""
    largest = max(abs(low), abs(high))
    if high - low <= max(largest, 1.0) * _FLAT:
        half = largest / 2 if largest > _FLAT else 0.5
        low, high = low - half, high + half
    rough = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(size for size in (1, 2, 2.5, 5, 10) if power * size >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # With twelve digits, 3 × 0.1 is 0.3.
    return Axis(tuple(float(f"{step * place:.12g}") for place in range(first, last + 1)))


@dataclass(frozen=True)
class Line:
    """One line of a curve. `points` is the attribute of an SVG polyline, `dots` are the places of its measurements."""

    name: str
    points: str
    dots: tuple[tuple[float, float], ...]
    last: float


@dataclass(frozen=True)
class Curve:
    """A loss curve. `summary` says in words what the picture shows, for those who can't see it."""

    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    summary: str


def loss_curve(points: Iterable[Mapping[str, Any]], total_steps: Any = None) -> Curve | None:
    """Make the curve of a job's metric points; None if they hold no loss.

    Args:
        points: `{step, loss, validation_loss, …}` each; values that are no finite numbers are left out.
        total_steps: where the axis ends, so that a live curve grows from left to right.
    """
    rows = list(points)
    series = {name: _measurements(rows, key) for name, key in (("training", "loss"), ("validation", "validation_loss"))}
    series = {name: found for name, found in series.items() if found}
    if not series:
        return None
    steps = [step for found in series.values() for step, _ in found]
    losses = [loss for found in series.values() for _, loss in found]
    x = make_axis(0, max(*steps, min(number_of(total_steps) or 0, _LARGEST), 1), _X_TICKS)
    y = make_axis(min(losses), max(losses), _Y_TICKS)
    lines = tuple(_line(name, found, x, y) for name, found in series.items())
    return Curve(x, y, lines, _summary(series))


def _measurements(rows: Iterable[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    found = [(number_of(row.get("step")), number_of(row.get(key))) for row in rows]
    return sorted(
        (step, loss)
        for step, loss in found
        if step is not None and loss is not None and 0 <= step <= _LARGEST and abs(loss) <= _LARGEST
    )


def _line(name: str, found: Sequence[tuple[float, float]], x: Axis, y: Axis) -> Line:
    drawn = found[:: math.ceil(len(found) / _MAX_DRAWN)]
    if drawn[-1] != found[-1]:
        drawn = [*drawn, found[-1]]
    places = [(x.place(step), round(100 - y.place(loss), 2)) for step, loss in drawn]
    # A validation is rare, so each gets a dot; of a training's points only a single one, which is no line yet.
    dots = tuple(places) if name == "validation" or len(places) == 1 else ()
    return Line(name, " ".join(f"{left},{top}" for left, top in places), dots, found[-1][1])


def _summary(series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    parts = [
        f"{name} loss from {measured(found[0][1])} at step {found[0][0]:.0f} "
        f"to {measured(found[-1][1])} at step {found[-1][0]:.0f}"
        for name, found in series.items()
    ]
    return "; ".join(parts)


@dataclass(frozen=True)
class Segment:
    """A stage in a run's timeline: where it begins and how wide it is, both in percent of the whole."""

    stage: str
    kind: str
    left: float
    width: float
    took: str
    is_live: bool


# In this order: an “upload” is no “load”.
_KINDS = {
    "waiting": ("queue", "claimed", "retry", "wait"),
    "starting": ("launch", "setup", "start", "initializing"),
    "training": ("train", "running"),
    "publishing": ("sav", "upload", "publish", "settl", "complet"),
    "loading": ("download", "prepar", "load", "configur"),
}


def kind_of_stage(stage: Any) -> str:
    """Return what kind of work a stage is, which decides its colour."""
    name = str(stage or "")
    return next((kind for kind, parts in _KINDS.items() if any(part in name for part in parts)), "waiting")


def timeline(stages: Iterable[Mapping[str, Any]], *, now: datetime, ended_at: Any = None) -> list[Segment]:
    """Make the timeline of a run's stages `{stage, begun_at, seconds}`; the last one of a live run lasts until now.

    A stage lasts until the next one begins; `seconds` is not needed.
    """
    begun = [(str(row.get("stage") or ""), time_of(row.get("begun_at"))) for row in stages]
    known = sorted(((at, stage) for stage, at in begun if at is not None), key=lambda entry: entry[0])
    if not known:
        return []
    end = time_of(ended_at) or now
    ends = [at for at, _ in known[1:]] + [max(end, known[-1][0])]
    whole = max((ends[-1] - known[0][0]).total_seconds(), 1e-9)
    segments = []
    for (at, stage), until in zip(known, ends, strict=True):
        seconds = (until - at).total_seconds()
        is_live = ended_at is None and until is ends[-1]
        left = 100 * (at - known[0][0]).total_seconds() / whole
        width = round(100 * seconds / whole, 2)
        segments.append(Segment(plain(stage), kind_of_stage(stage), round(left, 2), width, duration(seconds), is_live))
    return segments


@dataclass(frozen=True)
class Bar:
    """A bar: what it stands for, its amount in words, and its place in percent."""

    key: str
    amount: str
    left: float
    width: float
    height: float


@dataclass(frozen=True)
class LossBar:
    """A loss as a bar: whose, its value in words, and its length in percent of the longer one."""

    name: str
    loss: str
    length: float


def loss_bars(base: float, adapter: float) -> tuple[LossBar, ...]:
    """Make the bars of two losses, which are at least 0."""
    longest = max(base, adapter) or 1.0
    pairs = (("base", base), ("adapter", adapter))
    return tuple(LossBar(name, measured(loss, 3), round(100 * loss / longest, 2)) for name, loss in pairs)


def spend_bars(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Bar], Axis] | None:
    """Make bars of costs `{key, usd, …}`, oldest day first; None if there are none."""
    amounts = [(str(row.get("key")), number_of(row.get("usd")) or 0) for row in rows]
    if not any(usd > 0 for _, usd in amounts):
        return None
    axis = make_axis(0, max(usd for _, usd in amounts), _Y_TICKS)
    room = 100 / len(amounts)
    bars = [
        Bar(key, money(usd), round(place * room + room * 0.15, 2), round(room * 0.7, 2), axis.place(max(usd, 0)))
        for place, (key, usd) in enumerate(amounts)
    ]
    return bars, axis
