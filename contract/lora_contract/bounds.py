"""Types for the fields of messages that a trainer sends, each with limits.

The worker stores these values in database columns and shows them to users, and the trainer runs in a container that
the worker does not control. So every number, text and list is checked. An optional value outside its limits becomes
None instead of an error: the rest of the message is still usable. This module imports nothing heavier than pydantic.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

MOST_STEPS = 2_000_000_000
"""A limit for steps and counts that fits into the database's 32-bit integer columns."""

Item = TypeVar("Item")

_MOST_EPOCHS = 1_000_000
_MOST_SECONDS = 366 * 86_400
_LATEST_INSTANT = 4_102_444_800
"""The year 2100, in Unix seconds."""
_MOST_GPUS = 64
_MOST_NOTES = 50
_MOST_METRICS = 50


def _number(value: Any) -> float:
    """Convert a JSON number to a float; NaN for any other value, and for an integer too large for a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _within(low: float, high: float, otherwise: float | None = None) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        number = _number(value)
        # A comparison with NaN is always false, so NaN gives `otherwise`.
        return number if low <= number <= high else otherwise

    return check


def whole(low: int, high: int, otherwise: int | None = None) -> Callable[[Any], Any]:
    """Return a check that replaces all but whole numbers from `low` to `high` by `otherwise`."""

    def check(value: Any) -> Any:
        number = _number(value)
        return int(number) if low <= number <= high and number.is_integer() else otherwise

    return check


FiniteFloat = Annotated[float | None, BeforeValidator(_within(-sys.float_info.max, sys.float_info.max))]
"""A finite number. NaN and infinity become None, because neither JSON nor the database's columns can hold them."""

Seconds = Annotated[float | None, BeforeValidator(_within(0, _MOST_SECONDS))]
"""A duration of at most one year."""

Instant = Annotated[float | None, BeforeValidator(_within(0, _LATEST_INSTANT))]
"""A point in time as Unix seconds, from 1970 to 2100."""

Count = Annotated[int | None, BeforeValidator(whole(0, MOST_STEPS))]
Size = Annotated[int | None, BeforeValidator(whole(0, 2**53))]
"""A number of bytes or parameters."""

GpuCount = Annotated[int | None, BeforeValidator(whole(1, _MOST_GPUS))]
"""The number of GPUs in one machine, from 1 to 64."""

Epochs = Annotated[float | None, BeforeValidator(_within(0, _MOST_EPOCHS))]

StepReached = Annotated[int, BeforeValidator(whole(0, MOST_STEPS, 0))]
EpochReached = Annotated[float, BeforeValidator(_within(0, _MOST_EPOCHS, 0.0))]
"""The epoch that a run has reached; like `StepReached`, an impossible value becomes 0."""

PointStep = Annotated[int, Field(ge=0, le=MOST_STEPS)]
PointEpoch = Annotated[float, Field(ge=0, le=_MOST_EPOCHS)]


def text(most: int) -> BeforeValidator:
    """Return a validator that cuts a text after `most` characters."""
    return BeforeValidator(lambda value: value[:most] if isinstance(value, str) else value)


Name = Annotated[str, Field(max_length=400)]
Sentence = Annotated[str, text(2000)]
Label = Annotated[str, text(400)]


def first(most: int) -> Callable[[Any], Any]:
    """Return a function that keeps the first `most` items of a list or a dictionary."""

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return dict(list(value.items())[:most])
        return value[:most] if isinstance(value, list) else value

    return cut


Notes = Annotated[list[Annotated[str, text(1000)]], BeforeValidator(first(_MOST_NOTES))]
Metrics = Annotated[dict[Annotated[str, text(100)], FiniteFloat], BeforeValidator(first(_MOST_METRICS))]


def _none_if_invalid(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError:
        return None


NoneIfInvalid = WrapValidator(_none_if_invalid)
"""For an optional part of a message: where it can't be read it is None, and the rest of the message is still used."""


def spread(items: list[Item], most: int) -> list[Item]:
    """Choose at most `most` items at even distances, always with the first and the last one."""
    if len(items) <= most:
        return items
    stride = math.ceil((len(items) - 1) / (most - 1))
    return [*items[:-1:stride], items[-1]]
