"""A proxy before any stand-in, which breaks the calls that a fault names, and tells which submissions were accepted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sandbox.runpod import Faults
from sandbox.runpod.listener import Listener
from sandbox.runpod.wire import Refusal, answer_with, error_answer

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"]
_OF_ONE_CONNECTION = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "content-length", "accept-encoding"}
)
"""Headers that each side of the proxy has its own of; the proxy asks for answers that are not compressed."""
_PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Call:
    """A request to the cloud. Names of headers are in small letters."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


class FaultyProxy:
    """Passes each call on to the server at `target`, unless a fault strikes it. The end of `stack` stops it.

    Method, path, query, body and headers stay as they are, the host too, since a cloud's signature may cover them.
    Bodies are read whole: nothing is streamed.

    Args:
        name_of: the name of a call by which faults are armed ("run", "status", "cancel", "health"), whatever the cloud
            calls it; None for a call that no fault strikes.
        accepted: is told of each submission ("run") that the server has accepted, and of its answer, in the order in
            which they were accepted. The caller may never see that answer.
        refuse: the shape in which this cloud refuses a call.
    """

    def __init__(
        self,
        stack: ExitStack,
        target: str,
        *,
        name_of: Callable[[Call], str | None],
        accepted: Callable[[Call, httpx.Response], None],
        refuse: Refusal = error_answer,
    ) -> None:
        self.faults = Faults()
        self._target, self._name_of, self._accepted, self._refuse = target, name_of, accepted, refuse
        self._listener = Listener(Starlette(routes=[Route("/{path:path}", self._answer, methods=_METHODS)]))
        self.url = self._listener.url
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="faulty proxy")
        self._thread.start()
        stack.callback(self._stop)
        self._started.result()

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Refuse all connections while the context is open."""
        self._await(self._listener.close())
        try:
            yield
        finally:
            self._await(self._listener.open())

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        # Whoever calls a cloud follows its redirects himself.
        async with httpx.AsyncClient(
            base_url=self._target, timeout=_PATIENCE_SECONDS, trust_env=False, follow_redirects=False
        ) as self._http:
            await self._listener.open()
            self._started.set_result(None)
            await self._stopping.wait()
            await self._listener.close()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _await(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _answer(self, request: Request) -> Response:
        path = request.scope["raw_path"].decode("ascii")
        call = Call(request.method, path, request.url.query, dict(request.headers), await request.body())
        name = self._name_of(call)

        async def pass_on(_: Request) -> Response:
            return await self._pass_on(call, name)

        fault = self.faults.draw(name) if name is not None else None
        return await answer_with(fault, request, pass_on, refuse=self._refuse)

    async def _pass_on(self, call: Call, name: str | None) -> Response:
        try:
            answer = await self._http.request(
                call.method,
                f"{call.path}?{call.query}" if call.query else call.path,
                content=call.body,
                headers={
                    "accept-encoding": "identity",
                    **{key: value for key, value in call.headers.items() if key not in _OF_ONE_CONNECTION},
                },
            )
        except httpx.HTTPError:
            return Response(status_code=502)
        if name == "run" and answer.is_success:
            self._accepted(call, answer)
        kept = {
            key: value
            for key, value in answer.headers.items()
            if key not in _OF_ONE_CONNECTION and key not in {"date", "server"}
        }
        return Response(answer.content, answer.status_code, kept)


def note_nothing(_call: Call, _answer: httpx.Response) -> None:
    """The `accepted` of a stand-in that keeps a record of its own."""
