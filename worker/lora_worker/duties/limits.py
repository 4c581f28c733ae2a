"""How long a round of each duty may go without a sign of life, before /healthz calls it hung.

The limits follow from the time-outs of what a round does. Twice the longest that these allow is a hang: a call that
trickles, or a machine that is busy with other things, may take more than its time-outs say.
"""

from __future__ import annotations

from lora_worker.configuration.settings import Settings

_LEAST_SECONDS = 300.0
_CONNECT_SECONDS = 10.0
_ATTEMPTS = 3
_WAIT_SECONDS = 3.0
_PARSE_SECONDS = 60.0
"""How long a megabyte of a dataset may take to be parsed, on the smallest machine."""


def call_seconds(settings: Settings) -> float:
    """How long one call may take: its tries, each with time-outs for connection, sending and answer, and the waits."""
    return _ATTEMPTS * (_CONNECT_SECONDS + 2 * settings.request_timeout_seconds + _WAIT_SECONDS)


def silence_limit(settings: Settings, *, calls: int, more_seconds: float = 0.0) -> float:
    """The limit of work that makes so many calls, one after another, and takes so many seconds beside them."""
    return max(_LEAST_SECONDS, 2 * (calls * call_seconds(settings) + more_seconds))


def pause_limit(interval_seconds: float) -> float:
    """The limit of the pause until a loop's next round."""
    return 2 * interval_seconds + _LEAST_SECONDS


def reading_limit(settings: Settings) -> float:
    """The limit between two pieces of a dataset, and between its end and what is written of it."""
    return silence_limit(settings, calls=2, more_seconds=_PARSE_SECONDS)
