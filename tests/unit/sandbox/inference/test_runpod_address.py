"""What RunPod's address makes of vLLM's answers, and when its worker starts and ends, by a clock passed in."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.applications import Starlette

from sandbox.inference.runpod_address import InferenceApi
from sandbox.inference.scaling import ScaledWorker, Scaling, Time
from sandbox.inference.served import ServeSettings
from sandbox.inference.vllm import VllmServer
from sandbox.runpod.keys import Keys
from tests.unit.sandbox.inference.speaking import BASE, SpeakingModel, put_adapter

KEY = "rpa_callers"
HELLO = [{"role": "user", "content": "Hello"}]


class Clock:
    """Seconds that pass only when a test lets them."""

    def __init__(self) -> None:
        self.now = 1000.0

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        """Let time pass, and everything happen that is due then."""
        self.now += seconds
        for _ in range(20):
            await asyncio.sleep(0)


class Caller:
    """An endpoint on a folder of adapters, and calls to it."""

    def __init__(self, folder: Path, **scaling: float) -> None:
        self.clock = Clock()
        self.started = 0
        self._folder = folder
        worker = ScaledWorker(self._open, Scaling(**scaling), Time(lambda: self.clock.now, self.clock.sleep))
        self.worker = worker
        self.app: Starlette = InferenceApi("chat", worker, Keys(KEY)).app()

    async def _open(self) -> VllmServer:
        self.started += 1
        return VllmServer(ServeSettings(BASE, resolver_folder=self._folder), SpeakingModel())

    async def call(self, method: str, path: str, body: Any = None, key: str = KEY) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://runpod") as http:
            return await http.request(method, path, json=body, headers={"Authorization": f"Bearer {key}"})

    async def chat(self, model: str, **more: Any) -> httpx.Response:
        body = {"model": model, "messages": HELLO, **more}
        return await self.call("POST", "/v2/chat/openai/v1/chat/completions", body)

    async def said(self, model: str) -> str:
        return str((await self.chat(model)).json()["choices"][0]["message"]["content"])

    async def workers(self) -> dict[str, int]:
        counts: dict[str, int] = (await self.call("GET", "/v2/chat/health")).json()["workers"]
        return {name: count for name, count in counts.items() if count}


async def test_base_and_adapter_answer_at_runpods_address(tmp_path: Path) -> None:
    put_adapter(tmp_path, "first")
    caller = Caller(tmp_path)
    assert [await caller.said(name) for name in (BASE, "first")] == ["base", "first"]


async def test_a_refusal_of_vllm_has_status_200_and_its_text_in_an_error(tmp_path: Path) -> None:
    # worker-vllm's src/handler.py yields it; that RunPod passes it on with 200 is worker-vllm#57.
    answer = await Caller(tmp_path).chat("nobody")
    assert answer.status_code == 200
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("worker_error", None)
    start, _, refusal = error["message"].partition("vLLM returned HTTP 404: ")
    assert start == ""
    assert json.loads(refusal)["error"]["type"] == "NotFoundError"


async def test_a_refusal_of_a_stream_is_no_stream(tmp_path: Path) -> None:
    answer = await Caller(tmp_path).chat("nobody", stream=True)
    assert answer.headers["content-type"] == "application/json"
    assert "does not exist" in answer.json()["error"]["message"]


async def test_the_official_client_sees_no_error_in_such_an_answer(tmp_path: Path) -> None:
    """It raises nothing: whoever calls by it must look whether there are choices."""
    transport = httpx.ASGITransport(app=Caller(tmp_path).app)
    async with openai.AsyncOpenAI(
        base_url="http://runpod/v2/chat/openai/v1", api_key=KEY, http_client=httpx.AsyncClient(transport=transport)
    ) as client:
        answer = await client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "Hello"}])
    assert answer.choices is None
    assert "does not exist" in str(answer.model_extra)


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [("/v2/chat/health", "rpa_others", 401), ("/v2/chat/openai/v1/models", "", 401), ("/v2/gone/health", KEY, 404)],
)
async def test_a_wrong_key_or_endpoint_is_refused(tmp_path: Path, path: str, key: str, status: int) -> None:
    caller = Caller(tmp_path)
    assert (await caller.call("GET", path, key=key)).status_code == status
    assert caller.started == 0


async def test_the_edge_gives_up_before_a_slow_worker_is_ready(tmp_path: Path) -> None:
    # Golden path 20 of runpod-plugins-official: 524 after about 100 s, while the worker goes on starting.
    caller = Caller(tmp_path, cold_start_seconds=150)
    asked = asyncio.create_task(caller.chat(BASE))
    await caller.clock.advance(1)
    assert await caller.workers() == {"initializing": 1}
    await caller.clock.advance(100)
    assert (await asked).status_code == 524
    await caller.clock.advance(50)
    assert await caller.workers() == {"idle": 1, "ready": 1}
    assert await caller.said(BASE) == "base"
    assert caller.started == 1


async def test_an_idle_worker_ends_and_its_adapters_with_it(tmp_path: Path) -> None:
    place = put_adapter(tmp_path, "first")
    caller = Caller(tmp_path, idle_seconds=60)
    assert await caller.said("first") == "first"
    shutil.rmtree(place)
    await caller.clock.advance(59)
    assert await caller.said("first") == "first"
    await caller.clock.advance(60)
    assert await caller.workers() == {}
    assert "does not exist" in (await caller.chat("first")).text
    assert caller.started == 2


async def test_a_release_makes_a_deleted_adapter_unknown(tmp_path: Path) -> None:
    place = put_adapter(tmp_path, "first")
    caller = Caller(tmp_path)
    assert await caller.said("first") == "first"
    shutil.rmtree(place)
    assert (await caller.call("POST", "/sandbox/release", key="rpa_others")).status_code == 401
    assert (await caller.call("POST", "/sandbox/release")).status_code == 200
    assert "does not exist" in (await caller.chat("first")).text


async def test_a_worker_whose_engine_ended_answers_nobody(tmp_path: Path) -> None:
    # worker-vllm's src/handler.py, _is_vllm_alive
    place, caller = put_adapter(tmp_path, "first"), Caller(tmp_path)
    put_adapter(tmp_path, "second")
    assert [await caller.said(name) for name in ("first", "second")] == ["first", "second"]
    shutil.rmtree(place)
    assert "vLLM returned HTTP 500" in (await caller.chat("first")).text
    assert "vLLM server process is not running; worker is unhealthy" in (await caller.chat(BASE)).text
    await caller.call("POST", "/sandbox/release")
    assert await caller.said(BASE) == "base"
