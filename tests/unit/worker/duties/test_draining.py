"""A drained worker takes nothing new, works on its runs to their end, and then ends by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lora_worker.duties import daemon as daemon_module
from lora_worker.duties import held_runs
from lora_worker.duties.daemon import Daemon
from lora_worker.runs.applying import apply
from lora_worker.runs.state.events import Settled
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.services import Services
from tests.processes.waiting import PATIENCE_SECONDS
from tests.scripted import FakeQueue, assignment


@pytest.fixture(autouse=True)
def _quick_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "_REPORT_SECONDS", 0.01)


class Runs:
    """The work on every run: it goes on until the test lets the runs end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.worked = asyncio.Event()
        self.may_end = False
        monkeypatch.setattr(held_runs, "advance", self.work)

    async def work(self, held: HeldRun) -> None:
        self.worked.set()
        if self.may_end:
            apply(held, Settled("completed"))


async def heard(daemon: Daemon) -> None:
    while not daemon._presence.is_drained:
        await asyncio.sleep(0)


async def some_rounds(queue: FakeQueue) -> None:
    """Let the worker renew and report a few times more."""
    for _ in range(3):
        renewals, reports = queue.calls.count("renew"), len(queue.reports)
        while queue.calls.count("renew") == renewals or len(queue.reports) == reports:
            await asyncio.sleep(0.001)


async def test_drained_worker_ends_only_after_the_log_of_its_last_run(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue: Any = services.queue
    runs, daemon = Runs(monkeypatch), Daemon(services)
    reading, may_end = asyncio.Event(), asyncio.Event()

    async def finish_log(_held: HeldRun) -> None:
        reading.set()
        await may_end.wait()

    monkeypatch.setattr(held_runs, "finish_log", finish_log)
    queue.to_claim = [assignment()]
    running = asyncio.create_task(daemon.run())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await runs.worked.wait()
        queue.drain = True
        await heard(daemon)
        runs.may_end = True
        await reading.wait()
        enough = len(queue.reports) + 20
        while len(queue.reports) < enough and not running.done():
            await asyncio.sleep(0.001)
        assert not running.done()
        may_end.set()
        await running


async def test_drained_worker_ends_after_its_runs_and_takes_no_other(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue: Any = services.queue
    runs, daemon = Runs(monkeypatch), Daemon(services)
    queue.to_claim = [assignment()]
    running = asyncio.create_task(daemon.run())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await runs.worked.wait()
        queue.drain = True
        await heard(daemon)
        queue.to_claim, queue.to_adopt = [assignment()], [assignment()]
        await some_rounds(queue)
        assert len(daemon.runs.held) == 1
        assert not running.done()
        runs.may_end = True
        # It ends by itself, and as after SIGTERM: with a released lease and without an exception.
        await running
    assert (len(queue.to_claim), len(queue.to_adopt)) == (1, 1)
    assert queue.calls[-1] == "release"


async def test_drained_worker_without_runs_ends_at_once(services: Services) -> None:
    queue: Any = services.queue
    queue.drain = True
    async with asyncio.timeout(PATIENCE_SECONDS):
        await Daemon(services).run()
    assert queue.calls[-1] == "release"


async def test_worker_that_is_not_drained_goes_on(services: Services) -> None:
    queue: Any = services.queue
    daemon = Daemon(services)
    queue.to_claim = [assignment()]
    running = asyncio.create_task(daemon.run())
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(queue.reports) < 5:
            await asyncio.sleep(0.001)
    assert not running.done()
    daemon.stop()
    await running
