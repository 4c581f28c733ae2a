"""/healthz fails when a duty hangs, and not while one works for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from lora_worker.duties.daemon import Daemon
from lora_worker.duties.duty import Duty, RoundResult
from lora_worker.duties.limits import call_seconds, pause_limit, reading_limit, silence_limit
from lora_worker.duties.validation import Validator
from lora_worker.launchers.base import LaunchRef, Observation
from lora_worker.observability.health import HealthServer
from lora_worker.observability.liveness import Liveness
from lora_worker.observability.repeats import Repeats
from lora_worker.services import HeavySlots, Services
from tests.corpus.builders import GOOD, lines
from tests.processes.waiting import PATIENCE_SECONDS
from tests.scripted import START, Clock, FakeLauncher, assignment, make_services
from tests.scripted import FakeQueue as FakeDatabase
from tests.unit.worker.duties.test_dataset_validation import FakeQueue

DUTIES = [duty.name for duty in dict.fromkeys(Daemon(make_services()).duties())]


def watched(services: Services) -> tuple[Daemon, Clock]:
    """A daemon whose liveness has a clock that the test moves."""
    daemon, clock = Daemon(services), Clock()
    daemon._liveness._clock = clock
    return daemon, clock


def duty_of(daemon: Daemon, name: str) -> Duty:
    return next(duty for duty in daemon.duties() if duty.name == name)


class Hang:
    """A round that never ends."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    async def __call__(self) -> RoundResult:
        self.begun.set()
        await asyncio.Event().wait()
        return RoundResult()


@asynccontextmanager
async def hanging(daemon: Daemon, duty: Duty) -> AsyncIterator[None]:
    hang = Hang()
    loop = asyncio.create_task(daemon._rounds.repeat([replace(duty, run_once=hang)]))
    await asyncio.wait_for(hang.begun.wait(), PATIENCE_SECONDS)
    try:
        yield
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


@pytest.mark.parametrize("name", DUTIES)
async def test_each_duty_that_hangs_fails_healthz_after_its_limit(services: Services, name: str) -> None:
    daemon, clock = watched(services)
    duty = duty_of(daemon, name)
    async with hanging(daemon, duty):
        clock.now += duty.limit_seconds
        assert daemon.hang is None
        clock.now += 1
        server = HealthServer("127.0.0.1", 0, alive=lambda: daemon.hang, ready=lambda: None)
        try:
            answer = await asyncio.to_thread(httpx.get, f"http://127.0.0.1:{server.port}/healthz", timeout=60)
        finally:
            server.stop()
        assert answer.status_code == 503
        assert answer.json()["problem"].startswith(f"the duty {name} has given no sign of life for")
    assert daemon.hang is None


def test_each_limit_allows_what_its_round_may_take(services: Services) -> None:
    settings = services.settings
    for duty in Daemon(services).duties():
        assert duty.limit_seconds >= 300
        assert duty.limit_seconds >= call_seconds(settings)
    slow = settings.model_copy(update={"request_timeout_seconds": 120.0})
    assert silence_limit(slow, calls=1) > silence_limit(settings, calls=1)
    assert reading_limit(slow) > call_seconds(slow) * 2


async def test_loop_that_begins_no_further_round_is_a_hang(services: Services) -> None:
    daemon, clock = watched(services)
    paused = asyncio.Event()

    async def pause(_seconds: float) -> None:
        paused.set()
        await asyncio.Event().wait()

    daemon._rounds.pause = pause  # type: ignore[method-assign]
    duty = duty_of(daemon, "renew")
    loop = asyncio.create_task(daemon._rounds.repeat([duty]))
    await asyncio.wait_for(paused.wait(), PATIENCE_SECONDS)
    clock.now += pause_limit(duty.interval_seconds) + 1
    assert daemon.hang is not None
    assert daemon.hang.startswith("the loop of the duty renew")
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def test_start_that_hangs_fails_healthz(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon, clock = watched(services)
    hang = Hang()
    monkeypatch.setattr(services.queue, "check_schema", hang)
    running = asyncio.create_task(daemon.run())
    await asyncio.wait_for(hang.begun.wait(), PATIENCE_SECONDS)
    assert daemon.hang is None
    clock.now += silence_limit(services.settings, calls=4) + services.settings.poll_seconds + 1
    assert daemon.hang is not None
    assert daemon.hang.startswith("the start has given no sign of life")
    daemon.stop()
    await asyncio.wait_for(running, PATIENCE_SECONDS)


# ── a long read is no hang ──────────────────────────────────────────────────────────────────────────


class SlowStorage:
    """Streams a dataset of which each chunk takes nearly as long as it may."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds
        self.problems: list[str | None] = []

    @asynccontextmanager
    async def stream(self, _bucket: str, _path: str) -> AsyncIterator[Any]:
        async def give() -> AsyncIterator[bytes]:
            for _ in range(20):
                self._clock.now += self._seconds
                self.problems.append(alive.problem)
                yield lines(GOOD)

        alive = self.alive
        yield give()

    alive: Liveness


@pytest.mark.parametrize(("seconds", "hangs"), [(299, False), (301, True)])
async def test_long_dataset_is_no_hang_while_its_chunks_come(seconds: float, hangs: bool) -> None:
    clock = Clock()
    alive, storage = Liveness(clock), SlowStorage(clock, seconds)
    storage.alive = alive
    services: Any = SimpleNamespace(
        queue=FakeQueue(), storage=storage, clock=lambda: START, heavy_slots=HeavySlots(1),
        settings=SimpleNamespace(max_handlings=6, lease_seconds=60, retry_base_seconds=1), repeats=Repeats(clock),
    )  # fmt: skip
    validator = Validator(
        services, asyncio.Event(), beat=lambda: alive.beat("validate"), rest=lambda: alive.rest("validate")
    )
    alive.expect("validate", "the duty validate", 300)
    await validator.run_once()
    assert len(storage.problems) == 20
    assert any(storage.problems) is hangs
    assert services.queue.outcomes[0]["status"] == "ready"


async def test_wait_for_other_files_is_no_hang() -> None:
    clock = Clock()
    alive, slots = Liveness(clock), HeavySlots(1)
    services: Any = SimpleNamespace(queue=FakeQueue(), heavy_slots=slots, repeats=Repeats(clock))
    stop = asyncio.Event()
    validator = Validator(services, stop, beat=lambda: alive.beat("validate"), rest=lambda: alive.rest("validate"))
    alive.expect("validate", "the duty validate", 300)
    async with slots.take():
        waiting = asyncio.create_task(validator.run_once())
        await asyncio.sleep(0)
        clock.now += 100_000
        assert alive.problem is None
        services.queue.claims.clear()
    await asyncio.wait_for(waiting, PATIENCE_SECONDS)
    clock.now += 301
    # It had its turn, found nothing, and has not begun another round since.
    assert alive.problem is not None


def test_beats_of_a_loop_that_is_not_watched_do_nothing() -> None:
    alive = Liveness(Clock())
    alive.beat("validate")
    alive.rest("validate")
    assert alive.problem is None


# ── work on a run ───────────────────────────────────────────────────────────────────────────────────


class Waiting(FakeLauncher):
    """A launcher that answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked, self.may_answer = asyncio.Event(), asyncio.Event()

    async def observe(self, launch: LaunchRef) -> Observation:
        self.is_asked.set()
        await self.may_answer.wait()
        return await super().observe(launch)


async def test_work_on_a_run_that_lasts_is_seen() -> None:
    launcher, queue, clock = Waiting(), FakeDatabase(), Clock()
    queue.to_adopt.append(assignment())
    runs = Daemon(make_services(launcher=launcher, queue=queue, clock=clock)).runs
    await runs.adopt()
    assert runs.longest_work_seconds == 0
    await runs.poll()
    await asyncio.wait_for(launcher.is_asked.wait(), PATIENCE_SECONDS)
    clock.now += 5
    assert runs.longest_work_seconds == 5
    launcher.may_answer.set()
    await asyncio.wait_for(asyncio.gather(*runs.unfinished_work), PATIENCE_SECONDS)
    assert runs.longest_work_seconds == 0
