"""Commands that wait for a job outlast a short outage, and their exit code says how the job ended."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

import pytest

from lora_worker.commands.waiting import exit_code, wait_until_ended
from lora_worker.database.job_reports import JobDetails
from lora_worker.errors import ArgumentError, ServiceRefusedError, ServiceUnavailableError
from tests.scripted import Clock

JOB = UUID(int=7)
AWAY = ServiceUnavailableError("Supabase", "Supabase is not available")


class Script:
    """Answers one after the other; the last one again and again. Each pause moves the clock."""

    def __init__(self, *answers: str | Exception | None) -> None:
        self.answers = list(answers)
        self.clock = Clock()
        self.seen: list[str] = []

    async def training_job_details(self, job_id: UUID) -> JobDetails | None:
        assert job_id == JOB
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return None if answer is None else details(answer)

    async def pause(self, seconds: float) -> None:
        self.clock.now += seconds

    async def wait(self) -> JobDetails:
        return await wait_until_ended(
            self, JOB, seen=lambda told: self.seen.append(told["job"]["status"]),
            poll_seconds=10, pause=self.pause, clock=self.clock,
        )  # fmt: skip


def details(status: str) -> JobDetails:
    told: dict[str, Any] = {"job": {"status": status}, "runs": [], "points": [], "artifact": None, "costs": []}
    return cast(JobDetails, told)


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 3), ("cancelled", 3)])
async def test_waiting_ends_with_the_job_and_says_how(status: str, code: int) -> None:
    script = Script("queued", "initializing", "running", status)
    told = await script.wait()
    assert script.seen == ["queued", "initializing", "running", status]
    assert exit_code(told) == code


async def test_waiting_outlasts_an_outage_of_five_minutes() -> None:
    script = Script("running", *[AWAY] * 30, "completed")
    assert exit_code(await script.wait()) == 0
    script = Script("running", AWAY)
    with pytest.raises(ServiceUnavailableError):
        await script.wait()
    assert 300 < script.clock.now - Clock().now <= 330


async def test_waiting_for_a_job_that_is_gone_ends_with_a_sentence() -> None:
    for script in (Script(None), Script("running", None)):
        with pytest.raises(ArgumentError, match=f"there is no job {JOB}"):
            await script.wait()


async def test_refused_call_is_not_repeated() -> None:
    script = Script(ServiceRefusedError("Supabase", "the key is wrong", status=401), "completed")
    with pytest.raises(ServiceRefusedError):
        await script.wait()
