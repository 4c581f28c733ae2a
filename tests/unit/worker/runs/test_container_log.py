"""The log of an ended run's container is kept whatever the end, and nothing about it holds up a settlement."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lora_contract.error_codes import ErrorCode
from lora_contract.protocol import Result, TrainerError
from lora_worker.errors import ServiceRefusedError, ServiceUnavailableError
from lora_worker.launchers.base import ContainerLine, EndCause, LaunchRef, LaunchState, Observation
from lora_worker.runs import advance
from lora_worker.runs.outcomes.failures import CRASHED, NEVER_READY
from lora_worker.runs.state.events import Ending, Settled
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.runs.steps import container_log
from tests.scripted import assignment, make_services
from tests.unit.artifact_stores import MemoryBucket

NOW = datetime(2026, 11, 26, 14, 0, tzinfo=UTC)
ROW = "Margarethe wohnt in der Lindenstrasse"
OWN = "2026-11-26 14:00:00,123 lora_trainer.run.execution INFO "


class FakeLogs:
    """The launcher's logs: each look takes the next answer, and the last one again and again."""

    def __init__(self, *answers: list[ContainerLine] | Exception) -> None:
        self.answers = list(answers)
        self.looks: list[tuple[LaunchRef, str | None]] = []

    async def read(self, launch: LaunchRef, container: str | None, *, most_lines: int) -> list[ContainerLine]:
        self.looks.append((launch, container))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def follow(
        self, launch: LaunchRef, container: str, *, since: datetime | None
    ) -> AsyncIterator[ContainerLine]:
        raise NotImplementedError
        yield


class Jobs:
    """A database in which each job is this."""

    def __init__(self, details: Any) -> None:
        self.details = details

    async def training_job_details(self, _: Any) -> Any:
        return self.details


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_log, "_PAUSES_SECONDS", (0.0, 0.0, 0.0))


def holding(bucket: MemoryBucket | None = None, logs: Any = None, **run: Any) -> HeldRun:
    services = make_services(
        storage=bucket or MemoryBucket(),
        container_logs={"runpod": logs} if logs else {},
        now=lambda: NOW,
        queue=Jobs({"job": {}}),
    )
    held = HeldRun.take(services, assignment(**run), asked_at=services.clock())
    held.observation = Observation(LaunchState.FAILED, cause=EndCause.LOST, execution_seconds=61.2)
    held.container = "worker1"
    return held


def stored(held: HeldRun) -> str | None:
    run = held.assignment.run
    objects = held.services.storage.objects  # type: ignore[attr-defined]
    content = objects.get(f"{run.user_id}/{run.id}/log.txt")
    return None if content is None else content.decode()


def failed(held: HeldRun, log: list[str]) -> Ending:
    error = TrainerError(code=ErrorCode.INTERNAL, message="The training process was killed (SIGKILL).")
    return Ending(CRASHED, result=Result(run_id=held.run_id, status="failed", error=error, log=log))


async def end(held: HeldRun, ending: Ending, monkeypatch: pytest.MonkeyPatch, status: str = "failed") -> str | None:
    """Finish the run as the daemon does; returns what was stored when it was settled."""
    at_settling: list[str | None] = []

    async def settle(holding: HeldRun, _: Ending) -> Settled:
        at_settling.append(stored(holding))
        return Settled(status)

    monkeypatch.setattr(advance, "settle", settle)
    await advance.finish(held, ending)
    assert held.settled_as == status
    await advance.finish_log(held)
    return at_settling[0]


def of_launcher(*texts: str, container: str = "worker1", **more: Any) -> list[ContainerLine]:
    return [ContainerLine(container, text, **more) for text in texts]


async def test_trainers_log_is_stored_before_the_run_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    held = holding(logs=FakeLogs(RuntimeError("not to be asked")))
    log = [OWN + "it fails", f"ValueError: {ROW}", OWN + "with sb_secret_abcdefgh and hf_abcdefghijklmnopqrstuv"]
    before = await end(held, failed(held, log), monkeypatch)
    assert before == stored(held)
    assert before is not None
    assert OWN + "it fails\n" in before
    assert "The training process was killed (SIGKILL)" in before
    for hidden in (ROW, "sb_secret_abcdefgh", "hf_abc"):
        assert hidden not in before


async def test_log_of_a_success_is_stored_too(monkeypatch: pytest.MonkeyPatch) -> None:
    held = holding(logs=FakeLogs([]))
    result = Result(run_id=held.run_id, status="completed", log=[OWN + "done"])
    await end(held, Ending(CRASHED, result=result, look=True), monkeypatch, "completed")
    assert OWN + "done" in (stored(held) or "")


async def test_success_of_an_earlier_trainer_needs_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    held = holding(logs=FakeLogs(of_launcher(OWN + "x")))
    result = Result.model_validate({"run_id": held.run_id, "status": "completed"})
    await end(held, Ending(CRASHED, result=result), monkeypatch, "completed")
    assert stored(held) is None


@pytest.mark.parametrize("fault", [ServiceUnavailableError("Storage", "away"), RuntimeError("a bug")])
async def test_storage_fault_neither_prevents_the_settlement_nor_loses_the_log(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    bucket, writes = MemoryBucket(), iter(range(100))

    def break_the_first(call: str, path: str) -> None:
        if call == "write" and next(writes) == 0:
            raise fault

    bucket.before = break_the_first
    held = holding(bucket)
    assert await end(held, failed(held, [OWN + "it fails"]), monkeypatch) is None
    assert OWN + "it fails" in (stored(held) or "")


async def test_log_that_the_storage_refuses_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = MemoryBucket()

    def refuse(call: str, path: str) -> None:
        raise ServiceRefusedError("Storage", "Storage refused it (415)", status=415)

    bucket.before = refuse
    held = holding(bucket)
    await end(held, failed(held, [OWN + "it fails"]), monkeypatch)
    assert [call for call, _ in bucket.calls] == ["write"]


async def test_silent_storage_holds_the_settlement_up_for_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(MemoryBucket):
        async def write(self, *_: Any, **__: Any) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(container_log, "_STORE_SECONDS", 0.01)
    held = holding(Silent())
    assert await end(held, failed(held, [OWN + "it fails"]), monkeypatch) is None


async def test_killed_containers_log_is_read_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    held = holding()
    begins = f"{OWN}run {held.run_id}, attempt 1, execution e"
    logs = FakeLogs(
        [
            *of_launcher("container exited with code 137", is_launchers=True),
            *of_launcher(OWN + "run another, attempt 1, execution e", OWN + "another user's line"),
            *of_launcher(begins, OWN + "step 5 of 60", f"a print of {ROW}"),
        ]
    )
    object.__setattr__(held.services, "container_logs", {"runpod": logs})
    await end(held, Ending(CRASHED), monkeypatch, "queued")
    log = stored(held) or ""
    assert [look[1] for look in logs.looks] == ["worker1"]
    assert logs.looks[0][0].external_job_id == "ext"
    for kept in ("exited with code 137", begins, "step 5 of 60", "failed (lost) after 61 s, container worker1"):
        assert kept in log
    for hidden in ("another user's line", ROW):
        assert hidden not in log


async def test_launcher_is_asked_again_while_a_broken_image_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory"
    logs = FakeLogs(ServiceUnavailableError("RunPod", "RunPod failed (502)"), [], of_launcher(why, container="w9"))
    held = holding(logs=logs)
    held.container = None
    await end(held, Ending(NEVER_READY), monkeypatch)
    assert [look[1] for look in logs.looks] == [None] * 3
    assert f"── container w9\n{why}\n" in (stored(held) or "")


@pytest.mark.parametrize(
    ("logs", "words"),
    [
        (None, "can't be read from The cloud with these settings"),
        (FakeLogs(ServiceRefusedError("RunPod", "RunPod refused the key (403)", status=403)), "refused the key (403)"),
        (FakeLogs([]), "has none of this run any more"),
        (FakeLogs(RuntimeError("a bug")), "reading failed (RuntimeError)"),
    ],
)
async def test_without_any_line_the_end_and_the_reason_are_kept(
    monkeypatch: pytest.MonkeyPatch, logs: Any, words: str
) -> None:
    held = holding(logs=logs)
    await end(held, Ending(CRASHED), monkeypatch)
    log = stored(held) or ""
    assert words in log
    assert "trainer_crashed" in log


async def test_lines_of_before_the_launch_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    old = of_launcher(OWN + "old", at=NOW - timedelta(days=1))
    new = of_launcher(OWN + "new", at=NOW)
    held = holding(logs=FakeLogs([*old, *new]))
    await end(held, Ending(CRASHED), monkeypatch)
    log = stored(held) or ""
    assert OWN + "new" in log
    assert OWN + "old" not in log


@pytest.mark.parametrize("change", [{"job": None}])
async def test_nothing_is_stored_for_a_deleted_job(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    held = holding(logs=FakeLogs(of_launcher(OWN + "x")))
    held.assignment = held.assignment.model_copy(update=change)
    await end(held, failed(held, [OWN + "it fails"]), monkeypatch)
    assert stored(held) is None


async def test_log_of_a_job_that_was_erased_meanwhile_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    held = holding(logs=FakeLogs(of_launcher(OWN + "x")))
    object.__setattr__(held.services, "queue", Jobs(None))
    await end(held, Ending(CRASHED), monkeypatch)
    bucket: Any = held.services.storage
    assert [call for call, _ in bucket.calls] == ["write", "remove"]
    assert stored(held) is None


async def test_run_that_was_never_launched_has_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    held = holding(logs=FakeLogs(of_launcher(OWN + "x")), external_job_id=None)
    await end(held, Ending(CRASHED), monkeypatch)
    assert stored(held) is None


async def test_runs_token_is_in_no_kept_log(monkeypatch: pytest.MonkeyPatch) -> None:
    held = holding()
    assert held.token
    await end(held, failed(held, [f"{OWN}calls with {held.token}"]), monkeypatch)
    assert held.token not in (stored(held) or held.token)
