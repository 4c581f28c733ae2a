"""Waits for events. One deadline, which only a broken system reaches; the error says what did not happen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 360.0
"""Much longer than a busy machine needs. Shorter than pytest's own limit for a test, whose error only says
where a test was, and not what it waited for."""

_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.02, 0.3
_MOST_CHARACTERS = 3000


def awaited(
    probe: Callable[[], T | None],
    what: str,
    *,
    fits: Callable[[T], Any] = lambda _: True,
    state: Callable[[], Any] | None = None,
) -> T:
    """Call the probe until it returns something that fits; returns that.

    Args:
        probe: returns None as long as there is nothing.
        what: the awaited event, as a clause for the error message.
        fits: whether a result of the probe is the awaited one.
        state: gives further information for the error message, such as a log, of which the end is shown.

    Raises:
        TimeoutError: it did not happen; the message has `what`, the last result, and the state.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    pause = _SHORTEST_PAUSE_SECONDS
    while (found := probe()) is None or not fits(found):
        if time.monotonic() > deadline:
            last = "" if found is None else f"; found last: {str(found)[:_MOST_CHARACTERS]}"
            beside = "" if state is None else f"\n{str(state())[-_MOST_CHARACTERS:]}"
            raise TimeoutError(f"waited {PATIENCE_SECONDS:.0f} s in vain: {what}{last}{beside}")
        time.sleep(pause)
        pause = min(pause * 1.3, _LONGEST_PAUSE_SECONDS)
    return found


def until(condition: Callable[[], Any], what: str, *, state: Callable[[], Any] | None = None) -> None:
    """Wait until the condition is true.

    Raises:
        TimeoutError: it did not come true; the message has `what`, the condition's last value, and the state.
    """
    awaited(condition, what, fits=bool, state=state)
