"""The daemon's loops, with fake services and a clock that the test moves."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import pytest

from lora_worker.database.rows import News
from lora_worker.duties.daemon import Daemon
from lora_worker.errors import LeaseLostError, PassIncompleteError, SchemaMismatchError, ServiceUnavailableError
from lora_worker.launchers.base import EndpointHealth, LaunchRef, LaunchState
from lora_worker.runs import advance
from lora_worker.runs.state.events import Settled
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.services import HeavySlots, Services
from tests.processes.waiting import PATIENCE_SECONDS
from tests.scripted import ForgetfulLauncher, Shelf, assignment, note_launches, note_settlings


async def test_worker_stops_acting_when_its_lease_ends_by_its_own_clock(services: Services) -> None:
    daemon = Daemon(services)
    daemon.services.queue.to_adopt = [assignment()]  # type: ignore[attr-defined]
    await daemon.runs.adopt()
    services.clock.now += 60  # type: ignore[attr-defined]
    await daemon.runs.poll()
    assert services.launcher.looked == []  # type: ignore[attr-defined]
    assert not any(call.startswith("record_progress") for call in services.queue.calls)  # type: ignore[attr-defined]
    assert daemon.runs.held == {}


async def test_renewed_lease_counts_from_the_time_of_the_request(services: Services) -> None:
    daemon = Daemon(services)
    services.queue.to_adopt = [assignment()]  # type: ignore[attr-defined]
    await daemon.runs.adopt()
    (holding,) = daemon.runs.held.values()
    services.clock.now += 50  # type: ignore[attr-defined]
    asked_at = services.clock()
    await daemon.runs.renew()
    assert holding.trusted_until == asked_at + 60


async def test_lost_lease_ends_the_holding(services: Services) -> None:
    daemon = Daemon(services)
    taken = assignment()
    services.queue.to_adopt = [taken]  # type: ignore[attr-defined]
    await daemon.runs.adopt()
    services.queue.lost = {taken.run.id}  # type: ignore[attr-defined]
    await daemon.runs.renew()
    assert daemon.runs.held == {}


@pytest.mark.fault(15)
async def test_exception_in_one_run_does_not_disturb_the_others(services: Services) -> None:
    daemon = Daemon(services)
    adopted = [assignment("bad"), assignment("good-1"), assignment("good-2")]
    services.queue.to_adopt = adopted  # type: ignore[attr-defined]
    services.launcher.broken = {"bad"}  # type: ignore[attr-defined]
    await daemon.runs.adopt()
    await daemon.runs.poll()
    assert sorted(services.launcher.looked) == ["bad", "good-1", "good-2"]  # type: ignore[attr-defined]
    assert "record_progress 2" in services.queue.calls  # type: ignore[attr-defined]
    assert len(daemon.runs.held) == 3


@pytest.mark.parametrize("runs", [1, 40])
@pytest.mark.fault(14)
async def test_number_of_calls_of_a_cycle_does_not_grow_with_the_runs(services: Services, runs: int) -> None:
    daemon = Daemon(services)
    services.queue.to_adopt = [assignment() for _ in range(runs)]  # type: ignore[attr-defined]
    await daemon.runs.adopt()
    services.queue.calls.clear()  # type: ignore[attr-defined]
    await daemon.runs.renew()
    await daemon.runs.poll()
    assert services.queue.calls == ["renew", f"record_progress {runs}"]  # type: ignore[attr-defined]


async def test_unconfirmed_launch_is_left_alone_until_its_deadline(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = note_launches(monkeypatch)
    doubtful = assignment(None, status="claimed", launches=1, posted_seconds_ago=30)
    holding = HeldRun.take(services, doubtful, asked_at=services.clock())
    holding.trusted_until = float("inf")
    await advance.advance(holding)
    assert launched == []
    services.clock.now += 71  # type: ignore[attr-defined]
    await advance.advance(holding)
    assert launched == [holding]


async def test_adopted_run_without_a_launch_is_launched_at_once(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = note_launches(monkeypatch)
    await advance.advance(HeldRun.take(services, assignment(None, status="claimed"), asked_at=services.clock()))
    assert len(launched) == 1


def watched(
    services: Services,
    monkeypatch: pytest.MonkeyPatch,
    state: LaunchState,
    *,
    manifest: bool,
    checked_in: bool = True,
) -> tuple[HeldRun, list[Any]]:
    """A held run whose launcher reports `state`, and the list of endings with which it is settled."""
    endings = note_settlings(monkeypatch)
    ready = dataclasses.replace(
        services, launcher=cast(Any, ForgetfulLauncher(state)), storage=cast(Any, Shelf(manifest))
    )
    checked_in_at = datetime.now(UTC) if checked_in else None
    holding = HeldRun.take(ready, assignment(checked_in_at=checked_in_at), asked_at=services.clock())
    holding.trusted_until = float("inf")
    return holding, endings


async def test_run_forgotten_by_the_launcher_is_settled_by_its_manifest(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding, endings = watched(services, monkeypatch, LaunchState.MISSING, manifest=True)
    await advance.advance(holding)
    assert [ending.look for ending in endings] == [True]


async def test_run_is_lost_after_a_long_silence_but_not_after_one_404(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding, endings = watched(services, monkeypatch, LaunchState.MISSING, manifest=False)
    await advance.advance(holding)
    assert endings == []
    services.clock.now += services.settings.lost_seconds + 1  # type: ignore[attr-defined]
    await advance.advance(holding)
    assert [ending.failure.code for ending in endings] == ["gpu_lost"]


async def test_silent_run_is_stopped_and_its_manifest_looked_up(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding, endings = watched(services, monkeypatch, LaunchState.RUNNING, manifest=False)
    await advance.advance(holding)
    services.clock.now += services.settings.lost_seconds + 1  # type: ignore[attr-defined]
    await advance.advance(holding)
    assert endings == []
    await advance.advance(holding)
    assert holding.services.launcher.cancelled == ["ext"]  # type: ignore[attr-defined]
    assert [(ending.failure.code, ending.look) for ending in endings] == [("gpu_silent", True)]


async def test_trainer_without_heartbeats_may_use_the_longest_run_time(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding, endings = watched(services, monkeypatch, LaunchState.RUNNING, manifest=False, checked_in=False)
    for seconds in (0, services.settings.lost_seconds + 1, services.settings.max_run_seconds - 1000):
        services.clock.now += seconds  # type: ignore[attr-defined]
        await advance.advance(holding)
    assert holding.services.launcher.cancelled == []  # type: ignore[attr-defined]
    services.clock.now += 1000  # type: ignore[attr-defined]
    await advance.advance(holding)
    await advance.advance(holding)
    assert [ending.failure.code for ending in endings] == ["time_limit"]


async def test_cancelled_superseded_launch_does_not_end_the_run(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding, endings = watched(services, monkeypatch, LaunchState.CANCELLED, manifest=False)

    async def renew(leases: Any) -> list[News]:
        return [News(run_id=lease.run_id, held=True, external_job_id="winner") for lease in leases]

    monkeypatch.setattr(services.queue, "renew", renew)
    await advance.advance(holding)
    assert endings == []
    assert holding.news.external_job_id == "winner"


async def test_measured_gpu_time_is_kept_after_runpod_forgets_the_job(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding, _ = watched(services, monkeypatch, LaunchState.RUNNING, manifest=False)
    await advance.advance(holding)
    holding.services.launcher.state = LaunchState.MISSING  # type: ignore[attr-defined]
    await advance.advance(holding)
    assert holding.gpu_seconds() == 90


async def test_adopted_cancelled_run_is_billed_for_its_gpu_time(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    billed: list[float] = []

    async def settle(holding: HeldRun, _: Any) -> Settled:
        billed.append(holding.gpu_seconds())
        return Settled("cancelled")

    monkeypatch.setattr(advance, "settle", settle)
    adopted = assignment(used_seconds=70)
    holding = HeldRun.take(
        dataclasses.replace(services, launcher=cast(Any, ForgetfulLauncher(LaunchState.MISSING))),
        adopted.model_copy(update={"job": None}),
        asked_at=services.clock(),
    )
    assert holding.gpu_seconds() == 70
    # The trainer's last heartbeat may be later than the adoption.
    news = News(run_id=adopted.run.id, held=True, external_job_id="ext", used_seconds=75, cancel_requested=True)
    monkeypatch.setattr(services.queue, "renew", lambda leases: asyncio.sleep(0, [news]))
    await advance.advance(holding)
    assert billed == [75]


async def test_lease_that_expires_during_a_status_call_cancels_nothing(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding, _ = watched(services, monkeypatch, LaunchState.RUNNING, manifest=False)
    holding.news = holding.news.model_copy(update={"cancel_requested": True})
    holding.trusted_until = services.clock() + 10
    launcher: Any = holding.services.launcher
    look = launcher.observe

    async def look_slowly(ref: LaunchRef) -> Any:
        services.clock.now += 20  # type: ignore[attr-defined]
        return await look(ref)

    monkeypatch.setattr(launcher, "observe", look_slowly)
    with pytest.raises(LeaseLostError):
        await advance.advance(holding)
    assert launcher.cancelled == []


async def test_owning_launch_is_stopped_before_its_run_is_settled(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding, endings = watched(services, monkeypatch, LaunchState.RUNNING, manifest=False)
    holding.news = holding.news.model_copy(update={"cancel_requested": True})
    owner = News(run_id=holding.assignment.run.id, held=True, external_job_id="winner", cancel_requested=True)
    monkeypatch.setattr(services.queue, "renew", lambda leases: asyncio.sleep(0, [owner]))
    await advance.advance(holding)
    assert endings == []
    await advance.advance(holding)
    assert holding.services.launcher.cancelled == ["ext", "winner"]  # type: ignore[attr-defined]
    assert len(endings) == 1


async def test_waiting_for_gpu_is_shown_only_while_the_endpoint_is_ill(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []

    async def record_progress(reports: list[dict[str, Any]]) -> dict[Any, bool]:
        stages.extend(report["job"]["current_stage"] for report in reports)
        return {UUID(report["run_id"]): True for report in reports}

    launcher = ForgetfulLauncher(LaunchState.QUEUED)
    daemon = Daemon(dataclasses.replace(services, launcher=cast(Any, launcher)))
    queue: Any = services.queue
    monkeypatch.setattr(queue, "record_progress", record_progress)
    queue.to_adopt = [assignment(status="launched")]
    await daemon.runs.adopt()
    for problem in (None, "no free GPU", None):
        monkeypatch.setattr(
            launcher, "health", lambda _, problem=problem: asyncio.sleep(0, EndpointHealth(True, 0, 1, problem))
        )
        await daemon.endpoints.run_once()
        await daemon.runs.poll()
    assert stages == ["queued_on_gpu", "waiting_for_gpu", "queued_on_gpu"]


async def test_single_pass_adopts_before_it_claims_and_then_releases(services: Services) -> None:
    await Daemon(services).run_once()
    calls = services.queue.calls  # type: ignore[attr-defined]
    assert calls.index("adopt") < calls.index("claim") < calls.index("release")
    assert calls[-1] == "release"


@pytest.mark.parametrize(
    ("fault", "words"),
    [(ServiceUnavailableError("db", "claim_dataset did not answer"), "did not answer"), (ValueError("odd"), "the log")],
    ids=["away", "a bug"],
)
async def test_single_pass_continues_when_datasets_cannot_be_validated(
    services: Services, monkeypatch: pytest.MonkeyPatch, fault: Exception, words: str
) -> None:
    async def refuse() -> None:
        raise fault

    monkeypatch.setattr(services.queue, "claim_dataset", refuse)
    with pytest.raises(PassIncompleteError, match=words):
        await Daemon(services).run_once()
    calls = services.queue.calls  # type: ignore[attr-defined]
    assert calls.index("adopt") < calls.index("claim") < calls.index("release")


async def test_single_pass_says_that_nothing_can_be_launched(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing queued no run would tell of it, and cron would never learn that the key is refused."""
    refused = EndpointHealth(False, 0, 0, "RunPod refuses the key")
    monkeypatch.setattr(services.launcher, "health", lambda _: asyncio.sleep(0, refused))
    with pytest.raises(PassIncompleteError, match="no training can be launched: RunPod refuses the key"):
        await Daemon(services).run_once()
    assert services.queue.calls[-1] == "release"  # type: ignore[attr-defined]


async def test_stopping_daemon_claims_nothing_and_releases_its_leases(services: Services) -> None:
    daemon = Daemon(services)
    running = asyncio.create_task(daemon.run())
    while "claim" not in services.queue.calls:  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    daemon.stop()
    await asyncio.wait_for(running, PATIENCE_SECONDS)
    assert services.queue.calls[-1] == "release"  # type: ignore[attr-defined]
    assert daemon.problem is None


async def test_unknown_schema_version_ends_the_daemon_with_a_sentence(services: Services) -> None:
    services.queue.failing = SchemaMismatchError("db", "run migrate")  # type: ignore[attr-defined]
    with pytest.raises(SchemaMismatchError, match="run migrate"):
        await Daemon(services).run()


async def test_daemon_waits_for_an_absent_database(services: Services) -> None:
    daemon = Daemon(services)
    services.queue.failing = ServiceUnavailableError("db", "not reachable")  # type: ignore[attr-defined]
    running = asyncio.create_task(daemon.run())
    while services.queue.calls.count("check_schema") < 3:  # type: ignore[attr-defined]
        await asyncio.sleep(0.01)
    assert daemon.problem == "not reachable"
    services.queue.failing = None  # type: ignore[attr-defined]
    while "claim" not in services.queue.calls:  # type: ignore[attr-defined]
        await asyncio.sleep(0.01)
    daemon.stop()
    await asyncio.wait_for(running, PATIENCE_SECONDS)


async def test_run_that_crashed_workers_is_processed_alone() -> None:
    slots, together = HeavySlots(3), 0

    async def read(alone: bool, seen: list[int]) -> None:
        nonlocal together
        async with slots.take(alone=alone):
            together += 1
            await asyncio.sleep(0)
            seen.append(together)
            await asyncio.sleep(0)
            together -= 1

    suspect: list[int] = []
    others: list[int] = []
    await asyncio.gather(
        *(read(False, others) for _ in range(5)), read(True, suspect), *(read(False, others) for _ in range(5))
    )
    assert suspect == [1]
    assert max(others) == 3


async def test_worker_that_can_settle_no_run_is_not_ready(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing: list[Exception] = [ServiceUnavailableError("db", "settle_run refused")]

    async def settle(*_: Any) -> Settled:
        if refusing:
            raise refusing[0]
        return Settled("completed")

    monkeypatch.setattr(advance, "settle", settle)
    forgetful = cast(Any, ForgetfulLauncher(LaunchState.MISSING))
    daemon = Daemon(dataclasses.replace(services, launcher=forgetful, storage=cast(Any, Shelf(True))))
    daemon._readiness.end("start")
    services.queue.to_adopt = [  # type: ignore[attr-defined]
        assignment(checked_in_at=datetime.now(UTC)),
        assignment(external_job_id=None, status="claimed", launches=1, posted_seconds_ago=0),
    ]
    await daemon.runs.adopt()
    for _ in range(2):
        await daemon.runs.poll()
    assert daemon.problem is None
    await daemon.runs.poll()
    assert daemon.problem == "no run could be settled, 3 times in a row: settle_run refused"
    refusing.clear()
    await daemon.runs.poll()
    assert daemon.problem is None
