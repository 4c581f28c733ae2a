"""A client of RunPod's REST API whose answers a test sets, and whose waits take no time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx

from lora_worker.deployment.rest import RunPodApi

URL, KEY = "https://api.runpod.io/v2", "rpa_SECRETKEY123"


class Waits:
    """Records how long a client would have waited, and what it said."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.said: list[str] = []

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)


@asynccontextmanager
async def client(answer: Callable[[httpx.Request], httpx.Response], waits: Waits) -> AsyncIterator[RunPodApi]:
    """A client that gets its answers from a function."""
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        yield RunPodApi(URL, KEY, http=http, sleep=waits.sleep, on_wait=waits.said.append)


class Script:
    """Answers one after the other; an exception is raised instead. Records the requests."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def calls(self) -> list[str]:
        return [f"{request.method} {request.url.path}" for request in self.requests]
