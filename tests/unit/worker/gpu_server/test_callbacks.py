"""Who submitted a job is told when it begins and ends; a receiver that fails is asked again, and holds up nothing."""

from __future__ import annotations

import asyncio

from lora_worker.gpu_server.callbacks import Callbacks
from tests.unit.worker.gpu_server.conftest import Serving


class Receiver:
    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.got: list[tuple[str, str]] = []
        self.pauses: list[float] = []

    async def send(self, url: str, message: dict[str, str]) -> bool:
        self.got.append((url, message["status"]))
        return self.answers.pop(0) if self.answers else True

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


async def until_idle(callbacks: Callbacks) -> None:
    await asyncio.gather(*callbacks._calls)


async def test_begin_and_end_are_told_and_then_nothing() -> None:
    receiver = Receiver()
    callbacks = Callbacks(send=receiver.send, sleep=receiver.sleep)
    callbacks.keep("job-1", "https://worker.example.com/wake/x")
    callbacks.tell("job-2", "running")
    for state in ("running", "completed", "completed"):
        callbacks.tell("job-1", state)  # type: ignore[arg-type]
        await until_idle(callbacks)
    assert [state for _, state in receiver.got] == ["running", "completed"]


async def test_failed_call_is_tried_three_times() -> None:
    receiver = Receiver(False, False, False, False)
    callbacks = Callbacks(send=receiver.send, sleep=receiver.sleep)
    callbacks.keep("job-1", "https://worker.example.com/wake/x")
    callbacks.tell("job-1", "failed")
    await until_idle(callbacks)
    assert len(receiver.got) == 3
    assert len(receiver.pauses) == 2


async def test_server_tells_the_address_that_came_with_the_job(serving: Serving) -> None:
    receiver = Receiver()
    async with serving() as server:
        server.runner.callbacks = Callbacks(send=receiver.send, sleep=receiver.sleep)
        url = "https://worker.example.com/wake/x"
        given = {"run_id": "told", "play": ["complete"], "starts": str(server.folder / "told.starts")}
        answer = await server.http.post("/training/submit", json={"input": given, "webhook": url})
        await server.ended(answer.json()["external_job_id"])
        async with asyncio.timeout(60):
            while len(receiver.got) < 2:
                await asyncio.sleep(0.01)
    assert receiver.got == [(url, "running"), (url, "completed")]
