"""Duties: one list of them for the daemon and for a single pass, and one meaning for each exception."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from lora_worker.duties.daemon import Daemon
from lora_worker.duties.duty import Duty, RoundResult
from lora_worker.duties.faults import Faults, Meaning, meaning_of, run_work
from lora_worker.errors import (
    LaunchInDoubtError,
    LeaseLostError,
    SchemaCacheError,
    SchemaMismatchError,
    SchemaMissingError,
    ServiceError,
    ServiceRefusedError,
    ServiceUnavailableError,
    ValueRefusedError,
)
from lora_worker.services import Services
from tests.processes.waiting import PATIENCE_SECONDS

MEANINGS: list[tuple[Exception, Meaning]] = [
    (LeaseLostError("lost"), Meaning.LOST),
    (SchemaMissingError("db", "missing"), Meaning.RETRY),
    (SchemaCacheError("db", "not read yet"), Meaning.RETRY),
    (SchemaMismatchError("db", "another version"), Meaning.END),
    (ServiceError("db", "odd"), Meaning.RETRY),
    (ServiceUnavailableError("db", "away"), Meaning.RETRY),
    (ServiceRefusedError("db", "no", status=401), Meaning.RETRY),
    (ValueRefusedError("db", "can't hold it", status=400), Meaning.RETRY),
    (LaunchInDoubtError("RunPod", "no answer"), Meaning.RETRY),
    (ValueError("odd"), Meaning.BUG),
    (TimeoutError(), Meaning.BUG),
]


@pytest.mark.parametrize(("error", "meaning"), MEANINGS, ids=lambda value: type(value).__name__)
def test_each_exception_has_one_meaning(error: Exception, meaning: Meaning) -> None:
    assert meaning_of(error) is meaning


def failing(error: Exception) -> Duty:
    async def run_once() -> RoundResult:
        raise error

    return Duty("watch", 0, run_once)


@pytest.mark.parametrize(
    ("error", "meaning"), [pair for pair in MEANINGS if pair[1] is not Meaning.LOST], ids=lambda value: str(value)
)
async def test_failed_round_makes_the_worker_unready_or_ends_it(
    services: Services, error: Exception, meaning: Meaning
) -> None:
    daemon = Daemon(services)
    daemon._rounds.went_well("start")
    if meaning is Meaning.END:
        with pytest.raises(SchemaMismatchError):
            await daemon._rounds.once(failing(error))
        return
    result = await daemon._rounds.once(failing(error))
    assert result.failed == daemon.problem
    assert daemon.problem == ("a round failed; see the log" if meaning is Meaning.BUG else str(error))


@pytest.mark.parametrize(("error", "meaning"), MEANINGS, ids=lambda value: type(value).__name__)
def test_lasting_fault_is_logged_once(services: Services, error: Exception, meaning: Meaning) -> None:
    faults, work = Faults(services.repeats), run_work("run-1")
    with capture_logs() as logs:
        for _ in range(3):
            assert faults.note(work, error) is meaning
        faults.over(work)
    faulty = [entry for entry in logs if entry["event"] in {work.put_off, work.failed}]
    assert len(faulty) == (0 if meaning is Meaning.LOST else 1)
    assert all(entry["run_id"] == "run-1" for entry in faulty)
    assert [entry["times"] for entry in logs if entry["event"] == "fault over"] == [3] * len(faulty)


def test_pass_does_the_daemons_duties_in_the_list_order(services: Services) -> None:
    daemon = Daemon(services)
    for_loops, for_pass = daemon.duties(), daemon.duties(is_single_pass=True)
    assert [duty.name for duty in for_loops] == [duty.name for duty in for_pass]
    names = [duty.name for duty in for_pass if duty.in_pass]
    assert names.index("adopt") < names.index("poll") < names.index("claim") < len(names) - names[::-1].index("poll")
    left_out = {duty.name for duty in for_loops if not duty.in_pass}
    assert left_out == {"watch", "report"}
    # The endpoint, datasets, served adapters, old uploads, aliases: runs under way need the pass more than these do.
    assert {duty.name for duty in for_pass if not duty.ends_pass} == {
        "validate", "endpoint", "served", "sweep", "aliases",
    }  # fmt: skip


async def test_claim_waits_while_adoption_fails(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    daemon = Daemon(services)

    async def adopt(max_runs: int, launchers: Sequence[str]) -> list[Any]:
        tries.append(max_runs)
        if len(tries) == 3:
            daemon.stop()
        raise ServiceUnavailableError("db", "away")

    monkeypatch.setattr(services.queue, "adopt", adopt)
    duties = [duty for duty in daemon.duties() if duty.loop == "claim"]
    monkeypatch.setattr(daemon._rounds, "pause", lambda _: asyncio.sleep(0))
    await asyncio.wait_for(daemon._rounds.repeat(duties), PATIENCE_SECONDS)
    assert len(tries) == 3
    assert "claim" not in services.queue.calls  # type: ignore[attr-defined]
