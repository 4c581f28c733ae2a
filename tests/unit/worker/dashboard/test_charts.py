"""Charts hold what they show within the picture, whatever numbers come."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_worker.dashboard.charts import kind_of_stage, loss_curve, make_axis, spend_bars, timeline
from lora_worker.words import duration, measured, moment, money, percent
from tests.unit.worker.dashboard.scripted import NOW, ago

ANY_VALUE = st.one_of(st.none(), st.text(max_size=5), st.floats(), st.integers(-(10**12), 10**12), st.booleans())


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9), st.integers(2, 8))
def test_axis_holds_its_values_with_few_even_ticks(low: float, size: float, ticks: int) -> None:
    axis = make_axis(low, low + size, ticks)
    slack = 1e-6 * max(abs(axis.low), abs(axis.high), 1e-3)
    assert axis.low <= low + slack
    assert axis.high >= low + size - slack
    assert 2 <= len(axis.ticks) <= 2 * ticks + 2
    gaps = [after - before for before, after in zip(axis.ticks, axis.ticks[1:], strict=False)]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-3)


@given(st.lists(st.fixed_dictionaries({"step": ANY_VALUE, "loss": ANY_VALUE, "validation_loss": ANY_VALUE})), ANY_VALUE)
def test_curve_of_any_numbers_stays_in_the_picture(rows: list[dict[str, Any]], total_steps: Any) -> None:
    curve = loss_curve(rows, total_steps)
    if curve is None:
        return
    for line in curve.lines:
        for place in line.points.split():
            assert all(-0.5 <= float(number) <= 100.5 for number in place.split(","))


def test_values_that_are_no_numbers_are_left_out() -> None:
    assert loss_curve([]) is None
    assert loss_curve([{"step": 1, "loss": math.nan}, {"step": 2, "loss": None}, {"step": None, "loss": 1}]) is None
    curve = loss_curve([{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.inf}])
    assert curve is not None
    (line,) = curve.lines
    assert len(line.dots) == 1


def test_live_curve_ends_before_the_axis_does() -> None:
    curve = loss_curve([{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0}], 100)
    assert curve is not None
    assert (curve.x.low, curve.x.high) == (0, 100)
    assert curve.lines[0].points == "10.0,0.0 20.0,100.0"


def test_long_curve_is_thinned_but_keeps_its_end() -> None:
    curve = loss_curve([{"step": step, "loss": 1 / step} for step in range(1, 1001)])
    assert curve is not None
    (line,) = curve.lines
    assert len(line.points.split()) <= 301
    assert line.points.split()[-1].startswith("100.0,")


def test_timeline_fills_its_width_and_ends_with_the_run() -> None:
    stages = [{"stage": "queue", "begun_at": ago(minutes=10)}, {"stage": "training", "begun_at": ago(minutes=5)}]
    live = timeline(stages, now=NOW)
    assert [(part.left, part.width, part.took, part.is_live) for part in live] == [
        (0, 50, "5 min 00 s", False), (50, 50, "5 min 00 s", True)
    ]  # fmt: skip
    ended = timeline(stages, now=NOW, ended_at=ago(minutes=4))
    assert [(part.took, part.is_live) for part in ended] == [("5 min 00 s", False), ("1 min 00 s", False)]


@pytest.mark.parametrize(
    "stages",
    [[], [{"stage": "x", "begun_at": None}], [{"stage": None, "begun_at": "yesterday"}]],
)
def test_timeline_without_times_is_empty(stages: list[dict[str, Any]]) -> None:
    assert timeline(stages, now=NOW) == []


def test_timeline_bears_clocks_that_disagree() -> None:
    later = (NOW + timedelta(minutes=1)).isoformat()
    (part,) = timeline([{"stage": "training", "begun_at": later}], now=NOW)
    assert (part.took, part.width) == ("0 s", 0)


@pytest.mark.parametrize(
    ("stage", "kind"),
    [("queue", "waiting"), ("retry_after_lost_gpu", "waiting"), ("cold_start", "starting"), ("uploading", "publishing"),
     ("downloading", "loading"), ("loading_model", "loading"), ("training", "training"), ("settling", "publishing"),
     ("of a later version", "waiting"), (None, "waiting")],
)  # fmt: skip
def test_each_stage_has_a_kind(stage: str | None, kind: str) -> None:
    assert kind_of_stage(stage) == kind


def test_bars_of_costs() -> None:
    assert spend_bars([]) is None
    assert spend_bars([{"key": "2026-11-26", "usd": 0}]) is None
    made = spend_bars([{"key": "2026-11-25", "usd": 1.0}, {"key": "2026-11-26", "usd": "4"}])
    assert made is not None
    bars, axis = made
    assert [(bar.amount, bar.height) for bar in bars] == [("$1.00", 25), ("$4.00", 100)]
    assert axis.high == 4


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (duration(0.4), "0 s"), (duration(59.4), "59 s"), (duration(3599), "59 min 59 s"), (duration(-5), "0 s"),
        (duration(90_000), "1 d 1 h"), (duration(None), "–"), (duration("nan"), "–"), (money(0), "$0.00"),
        (money("1234.5"), "$1,234.50"), (money(0.004), "$0.0040"), (money(None), "–"), (percent("41.6"), "42 %"),
        (measured(1.25), "1.25"), (measured("x"), "–"), (moment(NOW), "2026-11-26 14:00:00 UTC"),
        (moment("2026-11-26T15:00:00+01:00"), "2026-11-26 14:00:00 UTC"),
        (moment("infinity"), "–"), (moment(7), "–"), (moment("2026-11-26T14:00:00"), "2026-11-26 14:00:00 UTC"),
    ],
)  # fmt: skip
def test_values_are_written_with_their_units(written: str, expected: str) -> None:
    assert written == expected
