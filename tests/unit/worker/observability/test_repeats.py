"""A log line that repeats in every cycle is written when it begins or changes, and then rarely."""

from __future__ import annotations

from lora_worker.observability.repeats import AGAIN_SECONDS, Repeats
from tests.scripted import Clock


def test_continuing_message_is_logged_once_and_then_rarely() -> None:
    clock = Clock()
    repeats = Repeats(clock)
    assert [repeats.is_due("run", "404") for _ in range(3)] == [True, False, False]
    clock.now += AGAIN_SECONDS
    assert [repeats.is_due("run", "404") for _ in range(2)] == [True, False]


def test_changed_or_returning_message_is_logged_at_once() -> None:
    repeats = Repeats(Clock())
    assert [repeats.is_due("run", text) for text in ("404", "401", "401", "404")] == [True, True, False, True]
    assert repeats.is_due("another", "404")
    repeats.clear("run")
    assert repeats.is_due("run", "404")


def test_memory_of_logged_messages_is_bounded() -> None:
    repeats = Repeats(Clock())
    for run in range(20_000):
        repeats.is_due(run, "404")
    assert len(repeats._said) == 10_000
    assert not repeats.is_due(19_999, "404")
    assert repeats.is_due(0, "404")


def test_clearing_returns_the_number_of_repeats() -> None:
    repeats = Repeats(clock := Clock())
    for text in ("401", "404", "404", "404"):
        repeats.is_due("run", text)
    clock.now += AGAIN_SECONDS
    repeats.is_due("run", "404")
    assert [repeats.clear("run") for _ in range(2)] == [4, 0]
