"""Stray launches are stopped concurrently with the runs' polls, and closed only when the launcher reports their end."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from lora_worker.database.answers import Stray
from lora_worker.duties.daemon import Daemon
from lora_worker.duties.strays import Reconciler
from lora_worker.errors import ServiceUnavailableError
from lora_worker.launchers.base import EndpointHealth, LaunchRef, LaunchState, Observation
from tests.processes.waiting import PATIENCE_SECONDS
from tests.scripted import GUIDE, FakeQueue, assignment, make_services


def stray(external_job_id: str) -> Stray:
    """A stray launch as the database returns it, without an endpoint."""
    return {
        "run_id": str(uuid4()), "launcher": None, "endpoint": None, "external_job_id": external_job_id,
        "endpoints": [], "age_seconds": 60,
    }  # fmt: skip


class StrayQueue(FakeQueue):
    """A queue with strays, each of which is closed once."""

    def __init__(self, *external_job_ids: str) -> None:
        super().__init__()
        self.strays = list(external_job_ids)
        self.closed: list[dict[str, Any]] = []

    async def stray_launches(self, max_launches: int) -> list[Stray]:
        self.calls.append("stray_launches")
        return [stray(name) for name in self.strays]

    async def close_launches(self, reports: list[dict[str, Any]]) -> int:
        self.closed += reports
        return len(reports)


class StrayLauncher:
    """A launcher that reports the states that a test sets, and may hang."""

    name = "runpod"
    guide = GUIDE
    longest_launch_seconds = 691_200.0
    takes_errands = True
    endpoint = "https://api.runpod.ai/v2/ep"

    def __init__(self, **states: LaunchState) -> None:
        self.states = states
        self.cancelled: list[str] = []
        self.together = self.most_together = 0
        self.hangs: asyncio.Event | None = None

    async def observe(self, launch: LaunchRef) -> Observation:
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        await (self.hangs.wait() if self.hangs else asyncio.sleep(0))
        self.together -= 1
        return Observation(self.states.get(launch.external_job_id, LaunchState.RUNNING), execution_seconds=7.0)

    async def cancel(self, launch: LaunchRef) -> bool:
        self.cancelled.append(launch.external_job_id)
        return True

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        return EndpointHealth(True, 1, 0)


def reconciler(queue: StrayQueue, launcher: StrayLauncher) -> Reconciler:
    return Reconciler(make_services(queue=queue, launcher=launcher), asyncio.Event())


async def test_stray_is_cancelled_until_its_launcher_reports_its_end() -> None:
    queue = StrayQueue("runs", "ended", "forgotten")
    launcher = StrayLauncher(ended=LaunchState.CANCELLED, forgotten=LaunchState.MISSING)
    await reconciler(queue, launcher).run_once()
    assert launcher.cancelled == ["runs"]
    assert queue.closed == [
        {"external_job_id": "ended", "gpu_seconds": 7.0},
        {"external_job_id": "forgotten", "gpu_seconds": 7.0},
    ]


async def test_stray_is_billed_as_its_launcher_bills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, launcher = StrayQueue("spot"), StrayLauncher()
    seen = Observation(LaunchState.CANCELLED, execution_seconds=7.0, billed_seconds=2.0)

    async def observe(launch: LaunchRef) -> Observation:
        return seen

    monkeypatch.setattr(launcher, "observe", observe)
    await reconciler(queue, launcher).run_once()
    assert queue.closed == [{"external_job_id": "spot", "gpu_seconds": 2.0}]


async def test_stray_with_unknown_status_is_left_for_the_next_round() -> None:
    queue, launcher = StrayQueue("unknown"), StrayLauncher(unknown=LaunchState.UNKNOWN)
    await reconciler(queue, launcher).run_once()
    assert launcher.cancelled == []
    assert queue.closed == []


async def test_refused_end_of_a_stray_is_told_to_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, launcher = StrayQueue("locked"), StrayLauncher()

    async def refuse(launch: LaunchRef) -> bool:
        return False

    monkeypatch.setattr(launcher, "cancel", refuse)
    duty = reconciler(queue, launcher)
    with capture_logs() as logs:
        await duty.run_once()
        await duty.run_once()
    (told,) = logs
    assert (told["log_level"], told["action"]) == ("warning", "stray.left")
    assert told["problem"] == f"its end was refused, and is asked for again: see {GUIDE.console}"
    assert queue.closed == []


async def test_strays_are_checked_concurrently_within_a_limit() -> None:
    launcher = StrayLauncher()
    await reconciler(StrayQueue(*map(str, range(40))), launcher).run_once()
    assert 1 < launcher.most_together <= 8
    assert len(launcher.cancelled) == 40


async def test_error_at_one_stray_does_not_block_the_others() -> None:
    queue, launcher = StrayQueue("bad", "ended"), StrayLauncher(ended=LaunchState.CANCELLED)

    async def observe(launch: LaunchRef) -> Observation:
        if launch.external_job_id == "bad":
            raise RuntimeError("a bug")
        return Observation(LaunchState.CANCELLED, execution_seconds=1.0)

    launcher.observe = observe  # type: ignore[method-assign]
    await reconciler(queue, launcher).run_once()
    assert queue.closed == [{"external_job_id": "ended", "gpu_seconds": 1.0}]


async def test_stop_leaves_the_remaining_strays_for_later() -> None:
    queue, launcher = StrayQueue(*map(str, range(40))), StrayLauncher()
    launcher.hangs = asyncio.Event()
    stop = asyncio.Event()
    working = asyncio.create_task(Reconciler(make_services(queue=queue, launcher=launcher), stop).run_once())
    while not launcher.together:
        await asyncio.sleep(0)
    stop.set()
    launcher.hangs.set()
    await asyncio.wait_for(working, PATIENCE_SECONDS)
    assert len(launcher.cancelled) <= 8


async def test_runs_are_polled_while_strays_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, launcher = StrayQueue("stray"), StrayLauncher()
    launcher.hangs = asyncio.Event()
    queue.to_adopt = [assignment("ext")]
    looked = []

    async def observe(launch: LaunchRef) -> Observation:
        looked.append(launch.external_job_id)
        if launch.external_job_id == "stray":
            await asyncio.Event().wait()
        return Observation(LaunchState.RUNNING)

    monkeypatch.setattr(launcher, "observe", observe)
    monkeypatch.setattr("lora_worker.duties.daemon._GRACE_SECONDS", 0.01)
    daemon = Daemon(make_services(queue=queue, launcher=launcher))
    running = asyncio.create_task(daemon.run())
    while looked.count("ext") < 3 or "stray" not in looked:
        await asyncio.sleep(0.001)
    daemon.stop()
    await asyncio.wait_for(running, PATIENCE_SECONDS)
    assert looked.count("stray") == 1


async def test_database_outage_is_reported_to_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = StrayQueue()

    async def stray_launches(max_launches: int) -> list[dict[str, Any]]:
        raise ServiceUnavailableError("db", "not reachable")

    monkeypatch.setattr(queue, "stray_launches", stray_launches)
    with pytest.raises(ServiceUnavailableError):
        await reconciler(queue, StrayLauncher()).run_once()
