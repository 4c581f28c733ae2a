"""What stands in front of the lightweight Supabase so that the official clients work unchanged.

It does five things and passes everything else through, bodies streaming:

1. a legacy HS256 key sent as `apikey` is verified and swapped for the matching `sb_…` key;
2. timestamps in JSON answers become ISO 8601;
3. signed download URLs get the spelling of the hosted Storage;
4. signed upload URLs too;
5. an `sb_…` key repeated as a bearer token is dropped.

Run as `python -m sandbox.proxy` with its settings as JSON in `LORA_SANDBOX_PROXY`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import httpx
import jwt
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

SETTINGS_VARIABLE = "LORA_SANDBOX_PROXY"

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host"}
_SIGN = "/storage/v1/object/sign/"
_SIGN_UPLOAD = "/storage/v1/object/upload/sign/"
_TIMESTAMP = re.compile(rb'"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d{1,6})?)([+-]\d\d)(?::?(\d\d))?"')
# Node closes an idle connection after 5 s; reusing one at that moment would lose the request.
_KEEPALIVE_SECONDS = 2.0


@dataclass(frozen=True)
class ProxySettings:
    """Where the proxy listens, what it stands in front of, and the keys that it may swap."""

    port: int
    upstream: str
    jwt_secret: str
    publishable_key: str
    secret_key: str

    def to_environment(self) -> dict[str, str]:
        """The variable from which `python -m sandbox.proxy` reads these settings."""
        return {SETTINGS_VARIABLE: json.dumps(asdict(self))}


def swap_keys(headers: MutableHeaders, settings: ProxySettings) -> None:
    """Replace a legacy key by the `sb_…` key of the same role and drop its copy as a bearer token."""
    apikey = headers.get("apikey", "")
    bearer = headers.get("authorization", "").removeprefix("Bearer ")
    if bearer.startswith("sb_"):
        del headers["authorization"]
    if not apikey.startswith("eyJ"):
        return
    try:
        role = jwt.decode(apikey, settings.jwt_secret, algorithms=["HS256"], options={"verify_aud": False}).get("role")
    except jwt.InvalidTokenError:
        return  # The server behind us refuses it, in its own words.
    swapped = {"anon": settings.publishable_key, "service_role": settings.secret_key}.get(str(role))
    if swapped is not None:
        headers["apikey"] = swapped
        if bearer == apikey:
            del headers["authorization"]


def iso_timestamps(body: bytes) -> bytes:
    """The JSON text with Postgres' timestamps (`2026-01-02 03:04:05+00`) as ISO 8601."""
    return _TIMESTAMP.sub(lambda m: b'"%bT%b%b:%b"' % (m[1], m[2], m[3], m[4] or b"00"), body)


def sign_request(body: bytes) -> bytes:
    """The request for a signed URL with its seconds as a number."""
    asked = json.loads(body)
    asked["expiresIn"] = int(asked["expiresIn"])
    return json.dumps(asked).encode()


def sign_answer(body: bytes) -> bytes:
    """The answer with `signedURL` relative to the Storage's root, null where there is none."""

    def spell(item: dict[str, Any]) -> dict[str, Any]:
        if "signedUrl" in item:
            url = item.pop("signedUrl") or ""
            item["signedURL"] = url.removeprefix("/storage/v1") or None
        return item

    answer = json.loads(body)
    return json.dumps([spell(item) for item in answer] if isinstance(answer, list) else spell(answer)).encode()


def sign_upload_answer(body: bytes) -> bytes:
    """The answer with `url` relative to the Storage's root."""
    answer = json.loads(body)
    if "signedUrl" in answer:
        answer["url"] = answer.pop("signedUrl").removeprefix("/storage/v1")
    return json.dumps(answer).encode()


def carries_object(method: str, path: str) -> bool:
    """Whether the answer is the content of an object, which nobody may touch."""
    inside = path.startswith("/storage/v1/object/") and not path.startswith("/storage/v1/object/info/")
    return inside and method in {"GET", "HEAD"}


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
        if request.method == "POST" and request.url.path.startswith(_SIGN):
            content = sign_request(await request.body())
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
        if is_json and not carries_object(request.method, request.url.path) and request.method != "HEAD":
            try:
                body = self._rewrite(request, await answer.aread())
            except httpx.TransportError:
                return JSONResponse({"code": "502", "message": "The local Supabase broke off"}, status_code=502)
            finally:
                await answer.aclose()
            response = Response(body, answer.status_code)
            headers = [(key, value) for key, value in headers if key != b"content-length"]
            response.raw_headers = [*headers, (b"content-length", str(len(body)).encode())]
        else:
            response = StreamingResponse(_stream(answer), answer.status_code)
            response.raw_headers = headers
        return response

    def _rewrite(self, request: Request, body: bytes) -> bytes:
        if request.method == "POST" and request.url.path.startswith(_SIGN):
            return sign_answer(body)
        if request.method == "POST" and request.url.path.startswith(_SIGN_UPLOAD):
            return sign_upload_answer(body)
        return iso_timestamps(body)


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


def main() -> None:
    """Serve until SIGTERM."""
    settings = ProxySettings(**json.loads(os.environ[SETTINGS_VARIABLE]))
    uvicorn.run(
        create_app(settings),
        host="127.0.0.1",
        port=settings.port,
        log_level="warning",
        access_log=False,
        date_header=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )


if __name__ == "__main__":
    main()
