"""Who submitted a job is told when it begins and ends; a receiver that fails is asked again, and holds up nothing."""

from __future__ import annotations

import asyncio

from lora_worker.gpu_server.callbacks import Callbacks


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
