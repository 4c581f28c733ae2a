"""RunPod's addresses of an endpoint that runs worker-vllm: `/v2/<id>/openai/v1/…` and `/v2/<id>/health`.

What is recorded of them: a call without a valid key is refused with 401, that of an unknown endpoint with 404; a call
waits while a worker starts, and after about 100 s Cloudflare ends it with 524 while its job goes on (golden path 20 of
runpod-plugins-official, live on 2026-07-14); an answer that holds an error has status 200 all the same (worker-vllm#57,
open). That a stream's error is plain JSON follows from these; nobody has recorded it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from sandbox.inference.answers import Json
from sandbox.inference.scaling import ScaledWorker
from sandbox.inference.worker_vllm import handle, job_input
from sandbox.runpod.keys import Keys

_MOST_BYTES = 20 * 1024 * 1024
_EDGE_TIMEOUT = 524


class InferenceApi:
    """The routes of one endpoint, and one for tests, which replaces its worker."""

    def __init__(self, endpoint: str, worker: ScaledWorker, keys: Keys) -> None:
        self._endpoint = endpoint
        self._worker = worker
        self._keys = keys

    def app(self) -> Starlette:
        """An application that serves all of them."""
        return Starlette(
            routes=[
                Route("/v2/{endpoint}/openai/{route:path}", self._openai, methods=["GET", "POST"]),
                Route("/v2/{endpoint}/health", self._health, methods=["GET"]),
                Route("/sandbox/release", self._release, methods=["POST"]),
            ]
        )

    async def _openai(self, request: Request) -> Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        body = await _json_of(request)
        answer = self._work(job_input("/" + request.path_params["route"], body))
        try:
            first = await anext(answer)
        except TimeoutError:
            return PlainTextResponse(f"error code: {_EDGE_TIMEOUT}", _EDGE_TIMEOUT)
        if isinstance(first, dict):
            await answer.aclose()
            return JSONResponse(first)
        return StreamingResponse(_all(first, answer), media_type="text/event-stream")

    async def _work(self, job: Json) -> AsyncIterator[Any]:
        async with self._worker.job() as server:
            async for part in handle(job, server):
                yield part

    async def _health(self, request: Request) -> Response:
        return self._refusal(request) or JSONResponse(self._worker.counts())

    async def _release(self, request: Request) -> Response:
        if self._keys.rights_of(request.headers.get("authorization")) is None:
            return JSONResponse({"error": "unauthorized"}, 401)
        self._worker.release()
        return JSONResponse({})

    def _refusal(self, request: Request) -> Response | None:
        if self._keys.rights_of(request.headers.get("authorization")) is None:
            return JSONResponse({"error": "unauthorized"}, 401)
        if request.path_params["endpoint"] != self._endpoint:
            return JSONResponse({"detail": "endpoint not found"}, 404)
        return None


async def _all(first: str, rest: AsyncIterator[Any]) -> AsyncIterator[str]:
    yield first
    async for part in rest:
        yield part


async def _json_of(request: Request) -> Any:
    body = await request.body()
    if len(body) > _MOST_BYTES:
        return {}
    try:
        return json.loads(body) if body else None
    except ValueError:
        return {}
