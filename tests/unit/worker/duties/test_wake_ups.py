"""A launcher's signed call lets its run be polled at once; no other call, and no number of them, does more."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from lora_worker.configuration.tokens import RunTokens
from lora_worker.duties.daemon import Daemon
from lora_worker.duties.duty import RoundResult
from lora_worker.duties.wake_ups import LEAST_SECONDS_BETWEEN, WakeUps
from lora_worker.launchers.base import Policy
from lora_worker.launchers.gpu_server.launcher import GpuServerLauncher
from lora_worker.launchers.runpod.launcher import RunPodLauncher
from lora_worker.runs.steps.launching import wake_url_of
from tests.scripted import Clock, FakeLauncher, FakeQueue, assignment, make_services

TOKENS = RunTokens(["a secret of 32 characters, or more", "a former one"])
RUN = UUID("6f2c0f5a-9d0b-4a54-a4f0-c2a3b1d5e7f9")


class Runs:
    """Holds one run, and notes which are polled."""

    def __init__(self) -> None:
        self.held: dict[UUID, Any] = {RUN: None}
        self.polled: list[set[UUID]] = []
        self.seen = asyncio.Event()

    async def poll_early(self, run_ids: set[UUID]) -> RoundResult:
        self.polled.append(run_ids)
        self.seen.set()
        return RoundResult(len(run_ids))


def call(run_id: UUID = RUN, tokens: RunTokens = TOKENS) -> str:
    return f"{run_id}.{tokens.wake_signature(run_id)}"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (call(), 204),
        (call(tokens=RunTokens(["a former one"])), 204),
        (call(UUID(int=5)), 204),
        (call(tokens=RunTokens(["another secret"])), 404),
        (f"{UUID(int=5)}.{TOKENS.wake_signature(RUN)}", 404),
        (f"{RUN}.{TOKENS.of(RUN, None)}", 404),
        (f"{RUN}.", 404),
        (call().upper(), 404),
        (call() + "/", 404),
        ("é" * 101, 404),
        ("", 404),
    ],
)
def test_only_the_runs_own_signature_is_taken(text: str, status: int) -> None:
    assert WakeUps(TOKENS, Runs(), Clock()).receive(text) == status  # type: ignore[arg-type]


async def test_calls_from_threads_poll_the_run_once_in_a_while() -> None:
    runs, clock = Runs(), Clock()
    wake_ups = WakeUps(TOKENS, runs, clock)  # type: ignore[arg-type]
    pauses: list[float] = []
    going_on = asyncio.Event()

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await going_on.wait()

    async def once(poll: Any) -> None:
        await poll()

    looking = asyncio.create_task(wake_ups.repeat(once, pause))
    await asyncio.sleep(0)
    assert await asyncio.to_thread(wake_ups.receive, call()) == 204
    await runs.seen.wait()
    for _ in range(20):
        assert await asyncio.to_thread(wake_ups.receive, call()) == 204
    assert runs.polled == [{RUN}]
    runs.seen.clear()
    going_on.set()
    await runs.seen.wait()
    assert runs.polled == [{RUN}, {RUN}]
    assert pauses[0] == LEAST_SECONDS_BETWEEN
    looking.cancel()


def test_flood_of_calls_is_refused_and_ends() -> None:
    clock = Clock()
    wake_ups = WakeUps(TOKENS, Runs(), clock)  # type: ignore[arg-type]
    statuses = [wake_ups.receive(f"{uuid4()}.{'0' * 64}") for _ in range(150)]
    assert (statuses.count(404), statuses.count(429)) == (100, 50)
    clock.now += 1
    assert wake_ups.receive(call()) == 204


async def test_held_run_is_polled_early_and_no_other() -> None:
    queue, launcher = FakeQueue(), FakeLauncher()
    queue.to_adopt = [assignment("first"), assignment("second")]
    daemon = Daemon(make_services(queue=queue, launcher=launcher))
    await daemon.runs.adopt()
    (first, _) = daemon.runs.held
    assert (await daemon.runs.poll_early({first, UUID(int=5)})).done == 1
    assert launcher.looked == ["first"]


def test_launchers_are_given_an_address_that_wakes_this_run_alone() -> None:
    services = make_services()
    assert wake_url_of(services, RUN) is None
    settings = services.settings.model_copy(update={"public_url": "https://worker.example.com/in"})
    services = make_services(settings=settings)
    url = wake_url_of(services, RUN)
    assert url is not None
    address, _, end = url.rpartition("/")
    assert address == "https://worker.example.com/in/wake"
    assert WakeUps(services.tokens, Runs(), Clock()).receive(end) == 204  # type: ignore[arg-type]
    for launcher in (RunPodLauncher, GpuServerLauncher):
        assert launcher.launch_body({}, Policy(60, 60, url))["webhook"] == url
        assert "webhook" not in launcher.launch_body({}, Policy(60, 60))
    assert url not in repr(Policy(60, 60, url))
