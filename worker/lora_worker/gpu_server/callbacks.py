"""Tells whoever submitted a job that it has begun or ended. It is a hint and not stored: who misses it asks anyway."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import httpx

from lora_worker.gpu_server.jobs import MAX_QUEUED, State

_ATTEMPTS = 3
_PAUSE_SECONDS = 2.0
_TIMEOUT = httpx.Timeout(10, connect=5)
_MOST_AT_ONCE = 16
_MOST_KEPT = 2 * MAX_QUEUED


async def post(url: str, message: dict[str, str]) -> bool:
    """Send a message once; whether it was taken. No redirect is followed, and no body of an answer is read."""
    try:
        async with (
            httpx.AsyncClient(timeout=_TIMEOUT, follow_redirects=False, trust_env=False) as http,
            http.stream("POST", url, json=message) as response,
        ):
            return response.status_code < 500 and response.status_code != 429
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        # The URL holds a signature, and so may the error's text: nothing is logged.
        return False


class Callbacks:
    """The addresses of jobs, and the calls that are under way."""

    def __init__(
        self,
        *,
        send: Callable[[str, dict[str, str]], Awaitable[bool]] = post,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._send = send
        self._sleep = sleep
        self._urls: OrderedDict[str, str] = OrderedDict()
        self._calls: set[asyncio.Task[None]] = set()

    def keep(self, job_id: str, url: str) -> None:
        """Note who is to be told of a job; after a restart of this server nobody is."""
        self._urls[job_id] = url
        while len(self._urls) > _MOST_KEPT:
            self._urls.popitem(last=False)

    def tell(self, job_id: str, state: State) -> None:
        """Tell of a job's state beside the work. Never waits; with too many calls under way it is left out."""
        url = self._urls.get(job_id)
        if state not in {"queued", "running"}:
            self._urls.pop(job_id, None)
        if url is None or len(self._calls) >= _MOST_AT_ONCE:
            return
        call = asyncio.create_task(self._call(url, {"external_job_id": job_id, "status": state}))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call(self, url: str, message: dict[str, str]) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            if await self._send(url, message) or attempt == _ATTEMPTS:
                return
            await self._sleep(_PAUSE_SECONDS)
