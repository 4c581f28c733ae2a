"""Waiting for what another process does: with a deadline that only a broken system reaches."""

import time
from collections.abc import Callable


def eventually(condition: Callable[[], bool], within_seconds: float = 30) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + within_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
