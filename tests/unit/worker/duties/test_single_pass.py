"""`run --once` renews its leases as the daemon does, ends as fast on SIGTERM, and reports what it could not do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lora_worker.database.rows import News
from lora_worker.duties import daemon as daemon_module
from lora_worker.duties import held_runs
from lora_worker.duties.daemon import Daemon
from lora_worker.errors import LeaseLostError, PassIncompleteError, SchemaMismatchError
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.services import Services
from tests.processes.waiting import PATIENCE_SECONDS
from tests.scripted import FakeQueue, assignment


def advance_by(monkeypatch: pytest.MonkeyPatch, work: Callable[[HeldRun], Awaitable[None]]) -> None:
    """Replace a cycle of a run by this function."""
    monkeypatch.setattr(held_runs, "advance", work)


def adopting(services: Services) -> FakeQueue:
    """The services' queue, with one run to adopt."""
    queue: Any = services.queue
    queue.to_adopt = [assignment()]
    return queue  # type: ignore[no-any-return]


async def test_pass_renews_its_leases_during_a_long_run(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = adopting(services)

    async def settle_something_large(holding: HeldRun) -> None:
        for _ in range(3):
            services.clock.now += 50  # type: ignore[attr-defined]
            renewals = queue.calls.count("renew")
            # The first of these may have been sent before the clock moved.
            while queue.calls.count("renew") < renewals + 2:
                await asyncio.sleep(0.001)
        holding.require_lease()
        holding.settled_as = "completed"

    advance_by(monkeypatch, settle_something_large)
    await asyncio.wait_for(Daemon(services).run_once(), PATIENCE_SECONDS)


async def test_stop_ends_a_pass_whatever_it_waits_for(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    queue, begun = adopting(services), asyncio.Event()

    async def wait_for_ever(_: HeldRun) -> None:
        begun.set()
        await asyncio.Event().wait()

    advance_by(monkeypatch, wait_for_ever)
    monkeypatch.setattr(daemon_module, "_GRACE_SECONDS", 0.01)
    daemon = Daemon(services)
    running = asyncio.create_task(daemon.run_once())
    await begun.wait()
    daemon.stop()
    with pytest.raises(PassIncompleteError, match="stopped before its end"):
        await asyncio.wait_for(running, PATIENCE_SECONDS)
    assert "claim" not in queue.calls
    assert queue.calls[-1] == "release"


async def test_stopped_pass_lets_calls_in_flight_finish(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    adopting(services)
    begun, stopped, finished = asyncio.Event(), asyncio.Event(), []

    async def finish_later(_: HeldRun) -> None:
        begun.set()
        await stopped.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        finished.append(True)

    advance_by(monkeypatch, finish_later)
    daemon = Daemon(services)
    running = asyncio.create_task(daemon.run_once())
    await begun.wait()
    daemon.stop()
    stopped.set()
    with pytest.raises(PassIncompleteError):
        await running
    assert finished == [True]


async def test_pass_records_a_heartbeat_as_a_pass(services: Services) -> None:
    await Daemon(services).run_once()
    assert [report["single_pass"] for report in services.queue.reports] == [True]  # type: ignore[attr-defined]


async def test_lost_run_makes_a_pass_incomplete(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    adopting(services)

    async def lose(_: HeldRun) -> None:
        raise LeaseLostError("the lease ran out before it was renewed")

    advance_by(monkeypatch, lose)
    with pytest.raises(PassIncompleteError, match="1 run was given up: the lease ran out"):
        await Daemon(services).run_once()


async def test_schema_change_during_a_pass_ends_it_with_a_sentence(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, begun = adopting(services), asyncio.Event()

    async def wait_for_ever(_: HeldRun) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def renew(leases: Any) -> list[News]:
        if begun.is_set():
            raise SchemaMismatchError("db", "run migrate")
        return [News(run_id=lease.run_id, held=True, external_job_id="ext") for lease in leases]

    advance_by(monkeypatch, wait_for_ever)
    monkeypatch.setattr(queue, "renew", renew)
    monkeypatch.setattr(daemon_module, "_GRACE_SECONDS", 0.01)
    with pytest.raises(SchemaMismatchError, match="run migrate"):
        await asyncio.wait_for(Daemon(services).run_once(), PATIENCE_SECONDS)


def test_grace_periods_of_a_stop_fit_into_ten_seconds() -> None:
    assert daemon_module._GRACE_SECONDS + daemon_module._RELEASE_SECONDS <= 8


@pytest.mark.parametrize("once", [False, True])
async def test_stop_takes_effect_while_the_database_does_not_answer(
    services: Services, monkeypatch: pytest.MonkeyPatch, once: bool
) -> None:
    asked = asyncio.Event()

    async def check_schema() -> int:
        asked.set()
        await asyncio.Event().wait()
        return 1

    monkeypatch.setattr(daemon_module, "_GRACE_SECONDS", 0.01)
    daemon = Daemon(services)
    monkeypatch.setattr(services.queue, "check_schema", check_schema)
    running = asyncio.create_task(daemon.run_once() if once else daemon.run())
    await asked.wait()
    daemon.stop()
    done, _ = await asyncio.wait([running], timeout=PATIENCE_SECONDS)
    assert done
    assert isinstance(running.exception(), PassIncompleteError if once else type(None))
