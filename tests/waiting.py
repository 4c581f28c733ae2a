"""Waiting for what another process does: with a deadline that only a broken system reaches."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], bool], within_seconds: float = 30) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + within_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def awaited(probe: Callable[[], T | None], within_seconds: float = 60) -> T:
    """What the probe finds, once it finds something."""
    deadline = time.monotonic() + within_seconds
    while (found := probe()) is None:
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.02)
    return found
