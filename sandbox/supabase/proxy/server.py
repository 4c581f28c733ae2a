"""The proxy's ASGI application: passes each request to the upstream server, and its answer back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sandbox.supabase.proxy import (
    auth_admin,
    pages,
    rest,
    resumable,
    storage,
    storage_lists,
    storage_ranges,
    storage_rules,
)
from sandbox.supabase.proxy.answer import Answer
from sandbox.supabase.proxy.keys import has_expired, swap_keys
from sandbox.supabase.proxy.settings import ProxySettings

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host"}
# Node closes an idle connection after 5 s. A request that is sent at that moment would be lost, so idle connections
# are closed earlier here.
_KEEPALIVE_SECONDS = 2.0


class Proxy:
    """The only request handler of the ASGI application, with its connection pool."""

    def __init__(self, settings: ProxySettings) -> None:
        self._settings = settings
        self._pages = pages.Pages()
        self._client = httpx.AsyncClient(
            base_url=settings.upstream,
            timeout=httpx.Timeout(None, connect=5),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=_KEEPALIVE_SECONDS),
            trust_env=False,
        )

    async def handle(self, request: Request) -> Response:
        """Pass a request on and its answer back, or answer it here if the real Storage would refuse it."""
        if request.url.path == pages.PATH and request.headers.get("apikey") == self._settings.secret_key:
            return self._pages.order(await request.body())
        refused = self._pages.take(request.url.path) or await self._refuse(request)
        if refused is not None:
            return refused
        try:
            answer = await self._client.send(await self._outgoing(request), stream=True)
        except httpx.TransportError as error:
            message = f"The local Supabase does not answer ({type(error).__name__})"
            return JSONResponse({"code": "502", "message": message}, status_code=502)
        except ClientDisconnect:
            return Response(status_code=400)
        return await self._incoming(request, answer)

    async def _refuse(self, request: Request) -> Response | None:
        """Return the answer to a request that is not passed on; None for all others."""
        length = request.headers.get("content-length", "")
        call = storage_rules.Call(
            request.method, _raw_path(request), request.query_params, int(length) if length.isdecimal() else None
        )
        refused = storage_rules.refusal(call, self._settings)
        if refused is None and storage.names_a_target(request.method, request.url.path):
            refused = storage_rules.refuse_names(await request.body())
        if request.url.path.startswith(rest.ROOT) and has_expired(request.headers, self._settings):
            refused = rest.EXPIRED
        if refused is not None:
            return Response(refused.body, refused.status, media_type="application/json")
        if auth_admin.asks_for_user(request.method, request.url.path):
            headers = MutableHeaders(raw=list(request.headers.raw))
            swap_keys(headers, self._settings)
            return await auth_admin.make_user(headers, await request.body(), self._client, self._settings)
        if request.url.path.startswith(resumable.PATH):
            headers = MutableHeaders(raw=list(request.headers.raw))
            swap_keys(headers, self._settings)
            return await resumable.answer_resumable(request.method, headers, self._client, self._settings)
        return None

    async def close(self) -> None:
        """Close the connections to the upstream server."""
        await self._client.aclose()

    async def _outgoing(self, request: Request) -> httpx.Request:
        headers = MutableHeaders(
            raw=[(key, value) for key, value in request.headers.raw if key.decode() not in _HOP_BY_HOP]
        )
        swap_keys(headers, self._settings)
        # JSON answers are rewritten, so they must not be compressed.
        headers["accept-encoding"] = "identity"
        content: AsyncIterator[bytes] | bytes | None = None
        if storage.asks_for_signing(request.method, request.url.path):
            content = storage.sign_request(await request.body())
            headers["content-length"] = str(len(content))
        elif storage_lists.asks_for_list(request.method, request.url.path):
            content = storage_lists.list_request(await request.body())
            headers["content-length"] = str(len(content))
        elif storage.names_a_target(request.method, request.url.path):
            content = await request.body()
        elif "content-length" in request.headers or "transfer-encoding" in request.headers:
            content = request.stream()
        target = _raw_path(request)
        if request.url.query:
            target += f"?{request.url.query}"
        return self._client.build_request(request.method, target, headers=headers.raw, content=content)

    async def _incoming(self, request: Request, answer: httpx.Response) -> Response:
        headers = [(key.lower(), value) for key, value in answer.headers.raw if key.lower().decode() not in _HOP_BY_HOP]
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        is_object = storage.carries_object(request.method, request.url.path) and answer.status_code < 400
        response: Response
        if is_json and not is_object and request.method != "HEAD":
            try:
                found = Answer(answer.status_code, await answer.aread())
            except httpx.TransportError:
                return JSONResponse({"code": "502", "message": "The local Supabase broke off"}, status_code=502)
            finally:
                await answer.aclose()
            found = storage.rewrite_answer(request.method, request.url.path, found, self._settings)
            if storage_lists.asks_for_list(request.method, request.url.path):
                found = storage_lists.list_answer(await request.body(), found)
            status, body = rest.rewrite_answer(request.url.path, found)
            response = Response(body, status)
            headers = [(key, value) for key, value in headers if key != b"content-length"]
            response.raw_headers = [*headers, (b"content-length", str(len(body)).encode())]
        elif is_object and "range" in request.headers and request.method == "GET":
            response = await _part(request.headers["range"], answer, headers)
        else:
            response = StreamingResponse(_stream(answer), answer.status_code)
            response.raw_headers = headers
        return response


def _raw_path(request: Request) -> str:
    return str(request.scope["raw_path"].decode("ascii"))


async def _part(wanted: str, answer: httpx.Response, headers: list[tuple[bytes, bytes]]) -> Response:
    part = storage_ranges.parse_range(wanted, int(answer.headers["content-length"]))
    if part is None:
        await answer.aclose()
        refused = storage_rules.refuse(
            416, "InvalidRange", "invalid range provided", error="invalid_range", http_status=416
        )
        return Response(refused.body, refused.status, media_type="application/json")
    response = StreamingResponse(storage_ranges.cut(_stream(answer), part), 206)
    response.raw_headers = [
        *[(key, value) for key, value in headers if key != b"content-length"],
        (b"content-length", str(part.last - part.first + 1).encode()),
        (b"content-range", f"bytes {part.first}-{part.last}/{part.total}".encode()),
    ]
    return response


async def _stream(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


def create_app(settings: ProxySettings) -> Starlette:
    """Create the proxy's ASGI application."""
    proxy = Proxy(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await proxy.close()

    return Starlette(routes=[Route("/{path:path}", proxy.handle, methods=_METHODS)], lifespan=lifespan)
