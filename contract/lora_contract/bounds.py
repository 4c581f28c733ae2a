"""Types of what a container says: every number, text and list of it has bounds, since nobody vouches for it.

A value that is out of its bounds and not needed becomes None: the rest of the message still counts. This module
imports pydantic and nothing heavier, as `lora_contract.protocol` does.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field

MOST_STEPS = 2_000_000_000
"""The most that the database's columns hold."""

Item = TypeVar("Item")

_MOST_EPOCHS = 1_000_000
_MOST_SECONDS = 366 * 86_400
_LATEST_INSTANT = 4_102_444_800
"""The year 2100, in Unix seconds."""
_MOST_GPUS = 64
_MOST_NOTES = 50
_MOST_METRICS = 50


def _number(value: Any) -> float:
    """The number that a JSON value is; NaN for anything else, and for one that no float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _within(low: float, high: float, otherwise: float | None = None) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        number = _number(value)
        # NaN lies between no two numbers.
        return number if low <= number <= high else otherwise

    return check


def _whole(low: int, high: int, otherwise: int | None = None) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        number = _number(value)
        return int(number) if low <= number <= high and number.is_integer() else otherwise

    return check


FiniteFloat = Annotated[float | None, BeforeValidator(_within(-sys.float_info.max, sys.float_info.max))]
"""NaN and infinity become None: neither JSON nor the database can hold them."""

Seconds = Annotated[float | None, BeforeValidator(_within(0, _MOST_SECONDS))]
"""A length of time, of a year at most."""

Instant = Annotated[float | None, BeforeValidator(_within(0, _LATEST_INSTANT))]
"""Unix seconds that a calendar knows."""

Count = Annotated[int | None, BeforeValidator(_whole(0, MOST_STEPS))]
Size = Annotated[int | None, BeforeValidator(_whole(0, 2**53))]
"""A number of bytes or parameters."""

GpuCount = Annotated[int | None, BeforeValidator(_whole(1, _MOST_GPUS))]
"""A number of GPUs that a machine may have."""

Epochs = Annotated[float | None, BeforeValidator(_within(0, _MOST_EPOCHS))]

StepReached = Annotated[int, BeforeValidator(_whole(0, MOST_STEPS, 0))]
EpochReached = Annotated[float, BeforeValidator(_within(0, _MOST_EPOCHS, 0.0))]
"""How far a run has come; nowhere, where that can't be."""

PointStep = Annotated[int, Field(ge=0, le=MOST_STEPS)]
PointEpoch = Annotated[float, Field(ge=0, le=_MOST_EPOCHS)]


def text(most: int) -> BeforeValidator:
    """Cuts a text after so many characters."""
    return BeforeValidator(lambda value: value[:most] if isinstance(value, str) else value)


Name = Annotated[str, Field(max_length=400)]
Sentence = Annotated[str, text(2000)]
Label = Annotated[str, text(400)]


def _first(most: int) -> Callable[[Any], Any]:
    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return dict(list(value.items())[:most])
        return value[:most] if isinstance(value, list) else value

    return cut


Notes = Annotated[list[Annotated[str, text(1000)]], BeforeValidator(_first(_MOST_NOTES))]
Metrics = Annotated[dict[Annotated[str, text(100)], FiniteFloat], BeforeValidator(_first(_MOST_METRICS))]


def spread(items: list[Item], most: int) -> list[Item]:
    """At most so many of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return items
    stride = math.ceil((len(items) - 1) / (most - 1))
    return [*items[:-1:stride], items[-1]]
