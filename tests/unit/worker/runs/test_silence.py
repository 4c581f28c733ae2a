"""How long a run has been silent: by the launcher's state, the heartbeat, and the worker's own clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from lora_worker.launchers.base import LaunchState, Observation
from lora_worker.runs.state.silence import Silence

HEARTBEAT = datetime(2026, 11, 23, tzinfo=UTC)


class Hearing:
    """Feeds observations to a `Silence` and returns the seconds of silence after each."""

    def __init__(self, since: float) -> None:
        self._silence = Silence(since)

    def listen(self, observation: Observation, heartbeat: datetime | None, now: float) -> float:
        self._silence = self._silence.listen(observation, heartbeat, now)
        return self._silence.seconds(now)


RUNNING = Observation(LaunchState.RUNNING, output={"current_step": 3})


def test_growing_execution_time_alone_does_not_end_the_silence() -> None:
    silence = Hearing(0)
    assert silence.listen(RUNNING, HEARTBEAT, 10) == 0
    hanging = Observation(LaunchState.RUNNING, output={"current_step": 3}, execution_seconds=700)
    assert silence.listen(hanging, HEARTBEAT, 700) == 690


@pytest.mark.parametrize(
    ("observation", "heartbeat"),
    [
        (RUNNING, HEARTBEAT + timedelta(seconds=15)),
        (Observation(LaunchState.RUNNING, output={"current_step": 4}), HEARTBEAT),
        (Observation(LaunchState.UNKNOWN), HEARTBEAT + timedelta(seconds=15)),
    ],
)
def test_heartbeat_or_progress_ends_the_silence(observation: Observation, heartbeat: datetime) -> None:
    silence = Hearing(0)
    silence.listen(RUNNING, HEARTBEAT, 10)
    assert silence.listen(observation, heartbeat, 700) == 0


def test_waiting_in_the_launchers_queue_is_not_silence() -> None:
    silence = Hearing(0)
    assert silence.listen(Observation(LaunchState.QUEUED), None, 30_000) == 0
    assert silence.listen(Observation(LaunchState.MISSING), None, 30_010) == 0
    assert silence.listen(Observation(LaunchState.MISSING), None, 30_020) == 10


def test_unreadable_status_does_not_end_the_silence() -> None:
    silence = Hearing(0)
    silence.listen(RUNNING, HEARTBEAT, 10)
    silence.listen(Observation(LaunchState.UNKNOWN), HEARTBEAT, 20)
    assert silence.listen(RUNNING, HEARTBEAT, 30) == 20


def test_silence_starts_at_adoption_despite_an_old_heartbeat() -> None:
    # The database was down, so no heartbeat could arrive.
    silence = Hearing(1000)
    assert silence.listen(RUNNING, HEARTBEAT, 1000.5) == 0
