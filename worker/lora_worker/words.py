"""How values are written for people, on pages and in terminals: durations, money, times and ids, each with its unit."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

NOTHING = "–"
"""What stands where there is no value."""


def number_of(value: Any) -> float | None:
    """Return a finite number, or None. The database sends numeric columns as numbers or as text."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def duration(value: Any) -> str:
    """Write seconds with the two largest units: `8 s`, `3 min 05 s`, `2 h 10 min`, `3 d 4 h`."""
    number = number_of(value)
    if number is None:
        return NOTHING
    seconds = max(0, round(number))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    if seconds < 86_400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"
    return f"{seconds // 86_400} d {seconds % 86_400 // 3600} h"


def money(value: Any) -> str:
    """Write US dollars: two places, or enough to show that a small amount is not nothing."""
    usd = number_of(value)
    if usd is None:
        return NOTHING
    return f"${usd:,.4f}" if 0 < abs(usd) < 0.01 else f"${usd:,.2f}"


def percent(value: Any) -> str:
    """Write a progress of 0 to 100."""
    number = number_of(value)
    return NOTHING if number is None else f"{number:.0f} %"


def measured(value: Any, places: int = 4) -> str:
    """Write a measured number, such as a loss, without zeros at its end."""
    number = number_of(value)
    return NOTHING if number is None else f"{number:.{places}g}"


def time_of(value: Any) -> datetime | None:
    """Read a time of the database, as ISO 8601; None if it is none."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


def moment(value: Any) -> str:
    """Write a time: `2026-11-26 14:03:22 UTC`."""
    time = time_of(value)
    return NOTHING if time is None else f"{time:%Y-%m-%d %H:%M:%S} UTC"


def plain(word: Any) -> str:
    """Write a column's word for people: `loading_model` becomes “loading model”."""
    return str(word).replace("_", " ") if word else NOTHING


def short_id(value: Any) -> str:
    """Write the first eight characters of an id."""
    return str(value)[:8] if value else NOTHING
