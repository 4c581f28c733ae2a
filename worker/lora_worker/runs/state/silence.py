"""How long a run has given no sign of life."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from lora_worker.launchers.base import LaunchState, Observation


@dataclass(frozen=True, slots=True)
class Silence:
    """Since when nothing new has been heard of a run, by this worker's lease clock, in seconds.

    It is counted only while this worker looks, so that an outage of our own does not count as the run's silence.
    The launcher's status and the trainer's heartbeat are two ways to hear of a run: either ends the silence.
    """

    since: float
    heartbeat: datetime | None = None
    """The trainer's last heartbeat that was seen."""
    seen: Observation | None = None
    """The last look at the launch that told its state."""

    def listen(self, observation: Observation, heartbeat: datetime | None, now: float) -> Silence:
        """The silence after one more look at the launch, with the trainer's latest heartbeat."""
        known = observation.state is not LaunchState.UNKNOWN
        ended = (
            heartbeat != self.heartbeat
            or observation.state is LaunchState.QUEUED
            or (known and self._is_new(observation))
        )
        return replace(
            self,
            since=now if ended else self.since,
            heartbeat=heartbeat,
            seen=observation if known else self.seen,
        )

    def seconds(self, now: float) -> float:
        """Seconds of silence so far."""
        return now - self.since

    def _is_new(self, observation: Observation) -> bool:
        # The execution time is left out: it also grows while a job hangs and only the launcher believes that it runs.
        seen = self.seen
        return seen is None or (seen.state, seen.output) != (observation.state, observation.output)
