"""Calls to RunPod are concurrent within its limits, and stop while it asks for a pause."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from lora_worker.errors import ServiceUnavailableError
from lora_worker.launchers.base import LaunchRef, LaunchState, Policy
from lora_worker.launchers.limits import CallLimit, PausedError
from lora_worker.launchers.runpod.launcher import RunPodLauncher
from tests.scripted import Clock

URL = "https://api.runpod.ai/v2/ep"


class Api:
    """RunPod that accepts so many concurrent calls of a kind, and answers the others with 429."""

    def __init__(self, most: int, headers: dict[str, str] | None = None) -> None:
        self.most, self.headers = most, headers or {}
        self.together: dict[str, int] = {}
        self.most_together: dict[str, int] = {}
        self.refused = self.calls = 0

    async def answer(self, request: httpx.Request) -> httpx.Response:
        kind = request.url.path.split("/")[3]
        self.calls += 1
        if self.together.get(kind, 0) >= self.most:
            self.refused += 1
            return httpx.Response(429, headers=self.headers)
        self.together[kind] = self.together.get(kind, 0) + 1
        self.most_together[kind] = max(self.most_together.get(kind, 0), self.together[kind])
        await asyncio.sleep(0.001)
        self.together[kind] -= 1
        return httpx.Response(200, json={"id": "j", "status": "IN_PROGRESS"})

    def launcher(self, **more: int) -> RunPodLauncher:
        http = httpx.AsyncClient(transport=httpx.MockTransport(self.answer))
        return RunPodLauncher(URL, "key", http=http, **more)


def refs(count: int) -> list[LaunchRef]:
    return [LaunchRef(None, str(number)) for number in range(count)]


async def test_cycle_over_1000_runs_uses_the_allowed_call_rate() -> None:
    api = Api(most=400)
    seen = await asyncio.gather(*map(api.launcher().observe, refs(1000)))
    assert {look.state for look in seen} == {LaunchState.RUNNING}
    assert api.most_together["status"] > 100


async def test_limit_adapts_to_what_runpod_accepts() -> None:
    api = Api(most=50)
    launcher = api.launcher()
    await asyncio.gather(*map(launcher.observe, refs(1000)))
    refused, api.refused = api.refused, 0
    assert 0 < refused < 300
    await asyncio.gather(*map(launcher.observe, refs(1000)))
    assert api.refused < 100
    assert 20 <= launcher._limits["status"].bound <= 60


async def test_configured_concurrency_is_never_exceeded() -> None:
    api = Api(most=400)
    await asyncio.gather(*map(api.launcher(concurrency=3).observe, refs(50)))
    assert api.most_together["status"] == 3


async def test_cancels_have_a_limit_of_their_own() -> None:
    api = Api(most=400)
    launcher = api.launcher()
    await asyncio.gather(*map(launcher.observe, refs(300)), *map(launcher.cancel, refs(90)))
    assert api.most_together["cancel"] <= 20 < api.most_together["status"]


async def test_retry_after_pauses_only_that_kind_of_call() -> None:
    api = Api(most=0, headers={"retry-after": "60"})
    launcher = api.launcher()
    with pytest.raises(ServiceUnavailableError) as first:
        await launcher.launch({}, Policy(60, 120))
    assert (first.value.retry_after_seconds, api.calls) == (60, 1)
    with pytest.raises(ServiceUnavailableError) as second:
        await launcher.launch({}, Policy(60, 120))
    assert second.value.retry_after_seconds == 60
    assert api.calls == 1
    api.most = 5
    assert (await launcher.observe(LaunchRef(None, "j"))).state is LaunchState.RUNNING


async def test_simultaneous_refusals_halve_the_limit_once() -> None:
    clock = Clock()
    limit = CallLimit(most=100, calls=1000, clock=clock)
    began_at = clock.now
    for _ in range(10):
        clock.now += 0.01
        limit.refused(began_at)
    assert limit.bound == 8
    limit.refused(clock.now)
    assert limit.bound == 4
    for _ in range(10):
        clock.now += 1
        limit.refused(clock.now)
    assert limit.bound == 1


async def test_calls_continue_after_a_pause() -> None:
    clock = Clock()
    limit = CallLimit(most=2, calls=1000, clock=clock)
    limit.refused(clock.now, pause_seconds=30)
    with pytest.raises(PausedError):
        async with limit.place():
            pass
    clock.now += 30
    async with limit.place():
        pass


async def test_rate_limit_holds_in_every_ten_seconds() -> None:
    clock, went = Clock(), []

    async def sleep(seconds: float) -> None:
        clock.now += seconds

    limit = CallLimit(most=1, calls=5, clock=clock, sleep=sleep)
    for _ in range(23):
        async with limit.place() as moment:
            went.append(moment)
        clock.now += 0.1
    assert all(later - earlier > 9.99 for earlier, later in zip(went, went[5:], strict=False))
    assert went[-1] - went[0] < 50


async def test_cancelled_caller_leaves_its_place_to_the_next() -> None:
    limit = CallLimit(most=1, calls=1000)
    gone, entered = [], asyncio.Event()

    async def hold(name: str, until: asyncio.Event) -> None:
        async with limit.place():
            gone.append(name)
            entered.set()
            await until.wait()

    never, now = asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(hold("first", never))
    await entered.wait()
    second, third = asyncio.create_task(hold("second", now)), asyncio.create_task(hold("third", now))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    first.cancel()
    now.set()
    await asyncio.gather(first, second, third, return_exceptions=True)
    assert gone == ["first", "third"]
    assert limit._running == 0
