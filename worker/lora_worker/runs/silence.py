"""How long nothing new was heard of a run."""

from __future__ import annotations

from datetime import datetime

from lora_worker.launchers.base import LaunchState, Observation


class Silence:
    """Counted by this worker's own clock and only while it looks, so that an outage of ours is no silence.

    The launcher's word and the trainer's heartbeat are two ways to hear: either ends the silence.
    """

    def __init__(self, now: float) -> None:
        self._since = now
        self._heartbeat: datetime | None = None
        self._seen: Observation | None = None

    def listen(self, observation: Observation, heartbeat: datetime | None, now: float) -> float:
        """Take in a look at the launch and the trainer's last heartbeat; seconds of silence so far."""
        known = observation.state is not LaunchState.UNKNOWN
        if (
            heartbeat != self._heartbeat
            or observation.state is LaunchState.QUEUED
            or (known and self._is_new(observation))
        ):
            self._since = now
        self._heartbeat = heartbeat
        if known:
            self._seen = observation
        return now - self._since

    def _is_new(self, observation: Observation) -> bool:
        # The execution time goes on by itself, also of a job that hangs at RunPod and nowhere else.
        seen = self._seen
        return seen is None or (seen.state, seen.output) != (observation.state, observation.output)
