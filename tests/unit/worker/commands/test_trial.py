"""A trial: which base it takes, when it works on the queue itself, and that it always removes what it made."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from lora_worker.commands import trial as module
from lora_worker.commands.trial import Conduct
from lora_worker.errors import ArgumentError, ServiceUnavailableError
from lora_worker.services import Services
from lora_worker.submission.trials import remove_former_trials, remove_trial, smallest_base, write_trial_dataset
from tests.scripted import make_services

JOB = UUID(int=7)
WORKER = {"draining": False, "single_pass": False, "seen_seconds_ago": 1.0}


class Queue:
    """Answers as the database does for one trial, which never ends by itself."""

    def __init__(self, *workers: dict[str, Any], queued: int = 0) -> None:
        self.workers, self.queued = list(workers), queued
        self.status = "queued"
        self.removed: list[UUID] = []
        self.former: list[UUID] = []
        self.broken = False

    async def check_schema(self) -> int:
        return 3

    async def health(self) -> Any:
        return {"workers": self.workers, "queued": self.queued, "no_worker": None if self.workers else "for a day"}

    async def training_ended_trials(self) -> list[UUID]:
        return self.former

    async def training_trial_files(self, job_id: UUID) -> list[dict[str, str]]:
        if self.broken:
            raise ServiceUnavailableError("the database", "the database is away")
        return [{"bucket": "lora-datasets", "name": "a"}, {"bucket": "lora-models", "name": "b"}]

    async def remove_training_trial(self, job_id: UUID) -> dict[str, Any]:
        if self.status == "queued":
            return {"removed": False, "reason": "the job is queued"}
        self.removed.append(job_id)
        return {"removed": True, "reason": None}

    async def cancel_training_job(self, job_id: UUID) -> bool:
        self.status = "cancelled"
        return True

    async def training_job_details(self, job_id: UUID) -> Any:
        job = {"status": self.status, "waits_for": "a free GPU", "error_message": None}
        return {"job": job, "runs": []}


class Storage:
    def __init__(self) -> None:
        self.removed: list[tuple[str, list[str]]] = []

    async def remove(self, bucket: str, paths: list[str]) -> None:
        self.removed.append((bucket, paths))


@pytest.fixture(autouse=True)
def placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is placed at once."""

    async def enqueue(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(job_id=JOB)

    monkeypatch.setattr(module, "enqueue", enqueue)


def conduct(queue: Queue, said: list[str], *, timeout_seconds: float = 0.01) -> Conduct:
    services = cast(Services, make_services(queue=queue, storage=Storage()))
    return Conduct(services, said.append, lambda _: None, timeout_seconds, pause=lambda _: asyncio.sleep(0))


async def test_a_trial_that_takes_too_long_is_cancelled_and_removed() -> None:
    queue, said = Queue(WORKER), list[str]()
    done = await conduct(queue, said).run("org/model", None)
    assert done.failure == "the trial did not end within 0.000166667 minutes: it waits for a free GPU"
    assert (done.left, queue.removed) == (None, [JOB])
    assert "cancelling the trial's job" in said


async def test_ctrl_c_cancels_and_removes_the_trial() -> None:
    queue, said = Queue(WORKER), list[str]()
    work = asyncio.create_task(conduct(queue, said, timeout_seconds=1000).run("org/model", None))
    while not any("queued a trial" in text for text in said):
        await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert queue.removed == [JOB]


async def test_what_can_not_be_removed_is_told() -> None:
    queue = Queue(WORKER)
    queue.broken = True
    done = await conduct(queue, []).run("org/model", None)
    assert done.left == f"job {JOB} is still there: the database is away"


@pytest.mark.parametrize(
    "workers",
    [
        [],
        [{**WORKER, "draining": True}],
        [{**WORKER, "single_pass": True, "seen_seconds_ago": 900.0}],
        [{**WORKER, "seen_seconds_ago": 100.0}],
    ],
)
async def test_others_jobs_are_not_begun_where_no_worker_takes_any(workers: list[dict[str, Any]]) -> None:
    with pytest.raises(ArgumentError, match="no worker runs, and 2 jobs wait"):
        await conduct(Queue(*workers, queued=2), []).run("org/model", None)


async def test_former_trials_are_removed_first_and_one_that_can_not_is_left() -> None:
    queue, storage = Queue(WORKER), Storage()
    queue.former, queue.status = [JOB, UUID(int=8)], "failed"
    services = cast(Services, make_services(queue=queue, storage=storage))
    assert await remove_former_trials(services) == 2
    assert storage.removed[:2] == [("lora-datasets", ["a"]), ("lora-models", ["b"])]
    queue.broken = True
    assert await remove_former_trials(services) == 0
    queue.broken, queue.status = False, "queued"
    assert await remove_trial(services, JOB) == "the job is queued"


def test_the_smallest_base_is_the_one_that_takes_the_least_memory() -> None:
    large, small = "Qwen/Qwen3-Next-80B-A3B-Instruct", "mistralai/Mistral-7B-Instruct-v0.2"
    assert smallest_base(["un/known", large, small, "mistralai/Mistral-7B-Instruct-v0.3"]) == small
    assert smallest_base(["un/known", "un/heard"]) == "un/known"


def test_no_two_trials_share_a_dataset(tmp_path: Path) -> None:
    first = write_trial_dataset(tmp_path).read_bytes()
    assert first != write_trial_dataset(tmp_path).read_bytes()
    assert first.count(b"\n") == 12
    with pytest.raises(ArgumentError, match="can't be written"):
        write_trial_dataset(tmp_path / "missing")
