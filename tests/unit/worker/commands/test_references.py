"""Arguments name a moment by an age or a date, and anything else is refused in one sentence."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from lora_worker.commands.references import moment
from lora_worker.errors import ArgumentError

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("30m", "2026-11-26T11:30:00+00:00"),
        ("24h", "2026-11-25T12:00:00+00:00"),
        ("7d", "2026-11-19T12:00:00+00:00"),
        ("2w", "2026-11-12T12:00:00+00:00"),
        ("2026-11-01", "2026-11-01T00:00:00+00:00"),
        ("2026-11-01T10:00+02:00", "2026-11-01T10:00:00+02:00"),
        ("999999w", "1926-12-21T12:00:00+00:00"),
    ],
)
def test_moment_is_an_age_or_a_date(text: str, meant: str) -> None:
    assert moment(text, NOW).isoformat() == meant


@pytest.mark.parametrize("text", ["", "yesterday", "7", "h", "-1d", "2026-13-01", "x" * 10_000])
def test_other_text_is_no_moment(text: str) -> None:
    with pytest.raises(ArgumentError, match="is no time") as caught:
        moment(text, NOW)
    assert len(str(caught.value)) < 200
