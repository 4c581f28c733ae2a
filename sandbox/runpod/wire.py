"""Shared by both APIs: reading bodies, breaking connections, and faults of a call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from sandbox.runpod.faults import Fault
from sandbox.runpod.jobs import BadRequestError

Handler = Callable[[Request], Awaitable[Response]]
Refusal = Callable[[int, str, dict[str, str]], Response]
"""Makes an error answer of a status, a message and headers."""


class BreakableProtocol(H11Protocol):
    """An HTTP protocol with which a handler can break its own connection; ASGI offers no way to do so."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make the transport available to the handlers, in `request.state`."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


async def break_connection(request: Request) -> Response:
    """Close the caller's connection without an answer."""
    request.state.transport.abort()
    await asyncio.sleep(0)
    return Response()


class BodyTooLargeError(ValueError):
    """The body is larger than RunPod's limit."""


async def read_json(request: Request, *, limit_bytes: int) -> Any:
    """Read the body as strict JSON, which like RunPod's server refuses NaN.

    Raises:
        BodyTooLargeError: the body is larger than `limit_bytes`.
        BadRequestError: the body is not JSON.
    """
    body = await request.body()
    if len(body) > limit_bytes:
        raise BodyTooLargeError(f"the body of {len(body)} bytes is over the limit of {limit_bytes}")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadRequestError("the body is not valid JSON") from None


def error_answer(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """Make an error answer in RunPod's usual shape."""
    return JSONResponse({"error": message}, status, headers)


def _canned_answer(fault: Fault, refuse: Refusal) -> Response:
    headers: dict[str, str] = {}
    if fault.retry_after_seconds is not None:
        headers["retry-after"] = str(fault.retry_after_seconds)
    if fault.body == "html":
        text = f"<html><head><title>{fault.status}</title></head><body>Bad gateway</body></html>"
        return Response(text, fault.status, headers, media_type="text/html")
    if fault.body == "broken_json":
        return Response('{"id": "', fault.status, headers, media_type="application/json")
    if fault.body == "empty":
        return Response(b"", fault.status, headers)
    return refuse(fault.status, "fault of the sandbox", headers)


async def answer_with(
    fault: Fault | None, request: Request, handle: Handler, *, refuse: Refusal = error_answer
) -> Response:
    """Answer a request with `handle`, changed by the fault if there is one; `refuse` is the shape of its errors."""
    if fault is None:
        return await handle(request)
    if fault.action == "disconnect":
        return await break_connection(request)
    if fault.action == "respond":
        return _canned_answer(fault, refuse)
    if fault.action == "delay":
        await asyncio.sleep(fault.seconds)
    response = await handle(request)
    if fault.action == "delay_answer":
        await asyncio.sleep(fault.seconds)
    if fault.action == "drop_answer":
        return await break_connection(request)
    if fault.action == "respond_after":
        return _canned_answer(fault, refuse)
    return response
