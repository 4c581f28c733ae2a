"""The proxy's ASGI application: one request to the server behind, its answer back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sandbox.proxy import rest, storage
from sandbox.proxy.answer import Answer
from sandbox.proxy.keys import swap_keys
from sandbox.proxy.settings import ProxySettings

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host"}
# Node closes an idle connection after 5 s; reusing one at that moment would lose the request.
_KEEPALIVE_SECONDS = 2.0


class Proxy:
    """The ASGI application's one handler and its connection pool."""

    def __init__(self, settings: ProxySettings) -> None:
        self._settings = settings
        self._client = httpx.AsyncClient(
            base_url=settings.upstream,
            timeout=httpx.Timeout(None, connect=5),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=_KEEPALIVE_SECONDS),
            trust_env=False,
        )

    async def handle(self, request: Request) -> Response:
        """Pass one request on and its answer back."""
        try:
            answer = await self._client.send(await self._outgoing(request), stream=True)
        except httpx.TransportError as error:
            message = f"The local Supabase does not answer ({type(error).__name__})"
            return JSONResponse({"code": "502", "message": message}, status_code=502)
        except ClientDisconnect:
            return Response(status_code=400)
        return await self._incoming(request, answer)

    async def close(self) -> None:
        """Close the connections to the server behind."""
        await self._client.aclose()

    async def _outgoing(self, request: Request) -> httpx.Request:
        headers = MutableHeaders(
            raw=[(key, value) for key, value in request.headers.raw if key.decode() not in _HOP_BY_HOP]
        )
        swap_keys(headers, self._settings)
        # JSON answers are rewritten, so they must come uncompressed.
        headers["accept-encoding"] = "identity"
        content: AsyncIterator[bytes] | bytes | None = None
        if storage.asks_for_signing(request.method, request.url.path):
            content = storage.sign_request(await request.body())
            headers["content-length"] = str(len(content))
        elif "content-length" in request.headers or "transfer-encoding" in request.headers:
            content = request.stream()
        target = request.scope["raw_path"].decode("ascii")
        if request.url.query:
            target += f"?{request.url.query}"
        return self._client.build_request(request.method, target, headers=headers.raw, content=content)

    async def _incoming(self, request: Request, answer: httpx.Response) -> Response:
        headers = [(key.lower(), value) for key, value in answer.headers.raw if key.lower().decode() not in _HOP_BY_HOP]
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        response: Response
        if is_json and not storage.carries_object(request.method, request.url.path) and request.method != "HEAD":
            try:
                found = Answer(answer.status_code, await answer.aread())
            except httpx.TransportError:
                return JSONResponse({"code": "502", "message": "The local Supabase broke off"}, status_code=502)
            finally:
                await answer.aclose()
            status, body = rest.rewrite_answer(storage.rewrite_answer(request.method, request.url.path, found))
            response = Response(body, status)
            headers = [(key, value) for key, value in headers if key != b"content-length"]
            response.raw_headers = [*headers, (b"content-length", str(len(body)).encode())]
        else:
            response = StreamingResponse(_stream(answer), answer.status_code)
            response.raw_headers = headers
        return response


async def _stream(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


def create_app(settings: ProxySettings) -> Starlette:
    """The proxy as an ASGI application."""
    proxy = Proxy(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await proxy.close()

    return Starlette(routes=[Route("/{path:path}", proxy.handle, methods=_METHODS)], lifespan=lifespan)
