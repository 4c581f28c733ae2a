"""A result that a trainer reports itself ends its run where no launcher carries one, and is trusted as little."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lora_contract.error_codes import ErrorCode
from lora_worker.database.rows import Lease, News
from lora_worker.launchers.base import EndCause, LaunchRef, LaunchState, Observation
from lora_worker.runs.advance import advance
from lora_worker.runs.applying import apply
from lora_worker.runs.state.events import Ending, Renewed
from lora_worker.runs.state.held_run import HeldRun
from tests.scripted import START, FakeLauncher, FakeQueue, Shelf, assignment, make_services, note_settlings

MACHINE = "lora-1"


class Machines(FakeLauncher):
    """A launcher of machines that carry no result."""

    def __init__(self, state: LaunchState, **seen: Any) -> None:
        super().__init__()
        self.seen = Observation(state, **seen)
        self.cancelled: list[str] = []

    async def observe(self, launch: LaunchRef) -> Observation:
        return self.seen

    async def cancel(self, launch: LaunchRef) -> bool:
        self.cancelled.append(launch.external_job_id)
        return True


class Renewals(FakeQueue):
    """A queue whose renewals bring this result to whoever has none yet."""

    result: Any = None
    external_job_id = MACHINE

    async def renew(self, leases: Any) -> list[News]:
        return [self._news(lease) for lease in leases]

    def _news(self, lease: Lease) -> News:
        news = News(run_id=lease.run_id, held=True, external_job_id=self.external_job_id, checked_in_at=None)
        return news if lease.has_result else news.model_copy(update={"result": self.result})


def taken(launcher: Machines, result: Any = None, **more: Any) -> HeldRun:
    services = make_services(launcher=launcher, queue=Renewals(), storage=Shelf(manifest=False), **more)
    held = HeldRun.take(services, assignment(MACHINE), asked_at=START)
    services.queue.result = {"run_id": held.run_id, **result} if isinstance(result, dict) else result  # type: ignore[attr-defined]
    return held


async def renew(held: HeldRun) -> None:
    (news,) = await held.services.queue.renew([held.lease])
    apply(held, Renewed(news, START))


FAILED = {"status": "failed", "error": {"code": "dataset_invalid", "message": "Line 17 is not JSON."}}
OVER = ["queued", "running", "completed", "failed", "missing"]


@pytest.mark.parametrize("state", OVER)
async def test_reported_failure_ends_the_run_whatever_its_launcher_says(
    monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    launcher = Machines(LaunchState(state), cause=EndCause.RAISED)
    settlings, held = note_settlings(monkeypatch), taken(launcher, FAILED)
    await renew(held)
    await advance(held)
    (ending,) = settlings
    assert ending.failure.code is ErrorCode.DATASET_INVALID
    # What may still run is stopped.
    assert launcher.cancelled == ([] if state in {"completed", "failed"} else [MACHINE])


@pytest.mark.parametrize("state", ["unknown", "cancelled", "timed_out"])
async def test_launcher_that_knows_better_is_believed(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    launcher = Machines(LaunchState(state))
    settlings, held = note_settlings(monkeypatch), taken(launcher, FAILED)
    await renew(held)
    await advance(held)
    assert [ending.failure.code for ending in settlings] == {
        "unknown": [], "cancelled": ["cancelled_at_launcher"], "timed_out": ["gpu_timed_out"],
    }[state]  # fmt: skip
    assert launcher.cancelled == []


async def test_result_that_the_launcher_carries_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = Machines(LaunchState.COMPLETED)
    settlings, held = note_settlings(monkeypatch), taken(launcher, FAILED)
    launcher.seen = replace(launcher.seen, output={"run_id": held.run_id, "status": "unpublished"})
    await renew(held)
    await advance(held)
    assert settlings[0].failure.code is ErrorCode.GRANT_MISSING


async def test_result_that_comes_with_the_last_renewal_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    settlings = note_settlings(monkeypatch)
    held = taken(Machines(LaunchState.FAILED, cause=EndCause.RAISED), FAILED)
    await advance(held)  # its machine has ended since the renewal before
    assert settlings == []
    await advance(held)
    assert [ending.failure.code for ending in settlings] == ["dataset_invalid"]


async def test_machine_that_reports_nothing_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    settlings, held = note_settlings(monkeypatch), taken(Machines(LaunchState.FAILED, cause=EndCause.RAISED))
    await advance(held)
    assert [ending.failure.code for ending in settlings] == ["trainer_crashed"]


@pytest.mark.parametrize("lie", [{"status": "winning"}, {"run_id": "another", "status": "completed"}, [], "text", 7])
async def test_unreadable_report_ends_only_its_own_run(monkeypatch: pytest.MonkeyPatch, lie: Any) -> None:
    launcher = Machines(LaunchState.RUNNING)
    settlings, held = note_settlings(monkeypatch), taken(launcher, lie)
    await renew(held)
    await advance(held)
    assert [ending.failure.code for ending in settlings] == ["result_unreadable"]
    assert launcher.cancelled == [MACHINE]


async def test_report_is_asked_for_once_and_kept_over_renewals() -> None:
    held = taken(Machines(LaunchState.RUNNING), FAILED)
    assert not held.lease.has_result
    await renew(held)
    assert held.lease.has_result
    await renew(held)
    assert held.news.result is not None


async def test_cancelled_run_keeps_how_far_its_trainer_came(monkeypatch: pytest.MonkeyPatch) -> None:
    settlings = note_settlings(monkeypatch)
    held = taken(Machines(LaunchState.CANCELLED), {**FAILED, "points": [{"step": 1, "epoch": 1}]})
    cancelled = News(run_id=held.assignment.run.id, held=True, cancel_requested=True, external_job_id=MACHINE)
    apply(held, Renewed(cancelled, START))
    await advance(held)
    (ending,) = settlings
    assert isinstance(ending, Ending)
    assert ending.result is not None
    assert len(ending.result.points) == 1
