"""Waiting for events, with one deadline that only a broken system reaches, and words for what did not happen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 360.0
"""Many times what a machine needs that three others use as well. Below pytest's own limit for a test, which only says
where a test stood and not what it waited for."""

_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.02, 0.3
_MOST_CHARACTERS = 3000


def awaited(
    probe: Callable[[], T | None],
    what: str,
    *,
    fits: Callable[[T], Any] = lambda _: True,
    state: Callable[[], Any] | None = None,
) -> T:
    """What the probe finds, once it finds something, and that fits.

    Args:
        probe: looks; None: there is nothing yet.
        what: what is waited for, as a clause.
        fits: whether what was found is it.
        state: what else a reader of the failure should know, such as a log; its end is shown.

    Raises:
        TimeoutError: it did not happen; with `what`, what was found last, and the state.
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
        TimeoutError: it did not come true; with `what`, what the condition was last, and the state.
    """
    awaited(condition, what, fits=bool, state=state)
