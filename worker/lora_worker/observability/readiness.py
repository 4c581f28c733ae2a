"""Decides whether this worker does its work (/readyz). It is asked from another thread than the event loop's."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

_FAILURES_IN_A_ROW = 3


class Readiness:
    """Collects what prevents the worker from doing its work: rounds that fail or do not end, runs it can't settle.

    A round is one execution of a duty that the worker repeats, such as polling the held runs. A round that takes longer
    than `stuck_seconds` counts as stuck.
    """

    def __init__(self, clock: Callable[[], float], *, stuck_seconds: float) -> None:
        self._clock = clock
        self._stuck_seconds = stuck_seconds
        self._faults: dict[str, str] = {"start": "starting"}
        self._begun: dict[str, float] = {}
        self._unsettled: dict[UUID, int] = {}
        self._settling_fault = ""
        self._idle_rounds = 0
        self._idle_fault = ""

    def begin(self, name: str) -> None:
        """Record that the round `name` begins."""
        self._begun[name] = self._clock()

    def end(self, name: str, problem: str | None = None) -> None:
        """Record that the round `name` has ended, successfully or with a problem."""
        self._begun.pop(name, None)
        if problem is None:
            self._faults.pop(name, None)
        else:
            self._faults[name] = problem

    def settling_failed(self, run_id: UUID, problem: str) -> None:
        """Record that a run has ended, but settling it failed with `problem`."""
        self._unsettled[run_id] = self._unsettled.get(run_id, 0) + 1
        self._settling_fault = problem

    def settled(self) -> None:
        """Record that a run was settled. Earlier failures are forgotten, since settling works again."""
        self._unsettled.clear()

    def forget(self, run_id: UUID) -> None:
        """Forget a run that another worker has taken over."""
        self._unsettled.pop(run_id, None)

    def note_runs(self, put_off: list[str | None]) -> None:
        """Record the result of a round over all held runs: for each, why its work was postponed, or None."""
        if put_off and all(put_off):
            self._idle_rounds += 1
            self._idle_fault = put_off[0] or ""
        else:
            self._idle_rounds = 0

    @property
    def problem(self) -> str | None:
        """What prevents this worker from doing its work; None if nothing does."""
        if self._faults:
            return next(iter(list(self._faults.values())), None)
        failures = sum(list(self._unsettled.values()))
        if failures >= _FAILURES_IN_A_ROW:
            return f"no run could be settled, {failures} times in a row: {self._settling_fault}"
        if self._idle_rounds >= _FAILURES_IN_A_ROW:
            return f"no run could be worked on in {self._idle_rounds} rounds: {self._idle_fault}"
        now = self._clock()
        stuck = [f"the round {name} has not ended for {now - since:.0f} s"
                 for name, since in list(self._begun.items()) if now - since > self._stuck_seconds]  # fmt: skip
        return stuck[0] if stuck else None
