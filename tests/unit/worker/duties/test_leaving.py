"""Runs that this worker no longer holds: their tasks end with the worker, and settled ones are no lost leases."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lora_worker.database.rows import News
from lora_worker.duties import daemon as daemon_module
from lora_worker.duties import held_runs
from lora_worker.duties.daemon import Daemon
from lora_worker.errors import ServiceUnavailableError
from lora_worker.runs import advance
from lora_worker.runs.applying import apply
from lora_worker.runs.outcomes.failures import CANCELLED_ELSEWHERE
from lora_worker.runs.state.events import Ending, Settled
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.services import Services
from tests.scripted import FakeQueue, assignment


def adopting(services: Services) -> FakeQueue:
    queue: Any = services.queue
    queue.to_adopt = [assignment()]
    return queue  # type: ignore[no-any-return]


async def test_stop_waits_for_work_on_runs_that_were_given_up(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work(_: HeldRun) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            # A cancelled call still needs some turns of the loop before it ends.
            for _ in range(5):
                await asyncio.sleep(0)
            ended.set()

    monkeypatch.setattr(held_runs, "advance", work)
    queue, daemon = adopting(services), Daemon(services)
    running = asyncio.create_task(daemon.run())
    await begun.wait()
    queue.lost = set(daemon.runs.held)
    await daemon.runs.renew()
    assert daemon.runs.held == {}
    daemon.stop()
    await running
    assert ended.is_set()


async def test_stop_gives_unresponsive_work_time_to_end(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def work(_: HeldRun) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            # A library may swallow one cancel.
            await asyncio.Event().wait()

    monkeypatch.setattr(held_runs, "advance", work)
    monkeypatch.setattr(daemon_module, "_GRACE_SECONDS", 0.01)
    queue, daemon = adopting(services), Daemon(services)
    running = asyncio.create_task(daemon.run())
    await begun.wait()
    queue.lost = set(daemon.runs.held)
    await daemon.runs.renew()
    daemon.stop()
    await running
    assert all(task.done() for task in tasks)


class LosesAnswers(FakeQueue):
    """A queue that settles runs but loses the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.settled: set[Any] = set()

    async def settle(self, run_id: Any, lease_token: Any, outcome: Any) -> Settled:
        self.calls.append("settle")
        self.settled.add(run_id)
        raise ServiceUnavailableError("Supabase's database", "the answer was lost")

    async def renew(self, leases: Any) -> list[News]:
        return [
            News(
                run_id=run,
                held=run not in self.settled,
                settled_as="cancelled" if run in self.settled else None,
                external_job_id="ext",
            )
            for run in (lease.run_id for lease in leases)
        ]


async def test_settling_with_a_lost_answer_is_not_a_lost_lease(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = LosesAnswers()
    queue.to_adopt = [assignment(external_job_id=None).model_copy(update={"job": None})]
    object.__setattr__(services, "queue", queue)
    daemon = Daemon(services)
    await daemon.runs.adopt()
    (holding,) = daemon.runs.held.values()
    with pytest.raises(ServiceUnavailableError):
        await advance.finish(holding, Ending(CANCELLED_ELSEWHERE))
    assert not await advance._is_owner(holding, "ext")
    assert holding.settled_as == "cancelled"
    holding.settled_as = None
    await daemon.runs.renew()
    assert (daemon.runs.held, holding.settled_as) == ({}, "cancelled")
    assert not daemon.runs.given_up


async def test_run_whose_log_is_still_read_holds_no_slot_and_no_stop(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, ended = asyncio.Event(), asyncio.Event()

    async def settle_at_once(held: HeldRun) -> None:
        apply(held, Settled("failed"))

    async def read(_: HeldRun) -> None:
        reading.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(held_runs, "advance", settle_at_once)
    monkeypatch.setattr(held_runs, "finish_log", read)
    monkeypatch.setattr(daemon_module, "_GRACE_SECONDS", 0.01)
    adopting(services)
    daemon = Daemon(services)
    running = asyncio.create_task(daemon.run())
    await reading.wait()
    assert daemon.runs.held == {}
    assert len(daemon.runs.unfinished_work) == 1
    daemon.stop()
    await running
    assert ended.is_set()
