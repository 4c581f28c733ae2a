"""What a duty is: something that the worker does again and again, and what one round of it comes to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass


def no_sign() -> None:
    """Give no sign of life: for a duty whose liveness nobody watches."""


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What one round of a duty came to."""

    done: int = 0
    """How many runs, launches, datasets or the like it dealt with."""
    put_off: tuple[str, ...] = ()
    """Why work is left for the next round: one sentence for each piece of it."""
    failed: str | None = None
    """Why the round as a whole failed; None where it did not."""


@dataclass(frozen=True, slots=True)
class Duty:
    """Something that the worker does again and again.

    `run_once` raises what keeps it from its work; `rounds.Rounds` knows what each exception means.
    """

    name: str
    """As it stands in logs and in the worker's problem."""
    interval_seconds: float
    run_once: Callable[[], Awaitable[RoundResult]]
    limit_seconds: float = 300.0
    """How long a round may give no sign of life before it counts as hung (`limits`)."""
    loop: str = ""
    """Duties with the same loop are done one after another, each only if the one before it went well; empty: alone."""
    takes_long: bool = False
    """Whether a round may take as long as reading whole files takes; any other round is a problem after a while."""
    in_pass: bool = True
    """Whether a single pass (`run --once`) does it, too."""
    ends_pass: bool = True
    """Whether a single pass ends when it fails; else the pass goes on without it."""

    @property
    def loop_name(self) -> str:
        """The name of its loop."""
        return self.loop or self.name
