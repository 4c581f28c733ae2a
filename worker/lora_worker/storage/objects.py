"""The client for Supabase Storage: signed URLs, streamed reads, uploads, copies and sizes of objects."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, urlsplit

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from lora_contract.connections import why_unreachable
from lora_contract.object_names import url_path
from lora_contract.storage_answers import Answer, Refusal, read_answer, read_streamed_answer
from lora_worker.database.rest import api_headers
from lora_worker.errors import ObjectMissingError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.observability.calls import called

_SERVICE = "Supabase Storage"
_COPY_SECONDS = 300.0
"""Time-out of a copy inside Storage. Five gigabytes take a minute or two."""

_ROUTES = (
    "object/upload/sign", "object/sign", "object/info", "object/copy", "object/list", "object", "bucket",
    "upload/resumable",
)  # fmt: skip
"""The routes of Storage that are called; the first that fits counts."""

PROBE_NAME = "uploads/probe"
"""The object name with which `takes_size` asks Storage. No object with this name is ever stored."""

_Answer = TypeVar("_Answer")


def _explain(answer: Answer, what: str, *, reads: bool = False) -> Exception:
    """Make the exception for an error answer; `what` is the object or the list that was asked for."""
    match answer.refusal:
        case Refusal.KEY_REFUSED | Refusal.URL_EXPIRED | Refusal.URL_REFUSED:
            # The worker never uses signed URLs itself, so a token that is refused is its key.
            return ServiceRefusedError(_SERVICE, f"{_SERVICE} refused the key for {what}", status=answer.status)
        case Refusal.MISSING:
            return ObjectMissingError(_SERVICE, f"{what} is not in the storage", status=404)
        case Refusal.NAME_REFUSED | Refusal.OTHER if reads and answer.status == 400:
            # No object can exist under a name that Storage does not allow, so a read finds nothing there.
            return ObjectMissingError(_SERVICE, f"{what} is not in the storage", status=404)
        case Refusal.PASSING:
            return ServiceUnavailableError(_SERVICE, f"{_SERVICE} is not available ({answer.status})")
    return ServiceRefusedError(_SERVICE, f"{_SERVICE} refused {what} ({answer.status})", status=answer.status)


def _unreadable(error: Exception) -> ServiceUnavailableError:
    if isinstance(error, httpx.HTTPError):
        return ServiceUnavailableError(_SERVICE, f"{_SERVICE} is not reachable: {why_unreachable(error)}")
    return ServiceUnavailableError(_SERVICE, f"{_SERVICE} did not answer properly ({type(error).__name__})")


class Storage:
    """A client for the project's Storage, with the secret key. Its methods raise only `ServiceError`s.

    It does not use the official client, which decodes a `%` in an object's name, and takes the HTTP status of an error
    for the real one (see `lora_contract.storage_answers`).
    """

    def __init__(self, url: str, key: str, *, http: httpx.AsyncClient) -> None:
        self._url = f"{url}/storage/v1"
        self._headers = api_headers(key)
        self._http = http

    def _names(self, url: str) -> dict[str, Any]:
        """Under which names a call is measured: the route, without bucket and object."""
        path = url.removeprefix(f"{self._url}/")
        return called("storage", next((route for route in _ROUTES if path.startswith(route)), "other"))

    def _object_url(self, route: str, bucket: str, path: str) -> str:
        key = url_path(path)
        if key is None:
            raise ObjectMissingError(_SERVICE, f"{bucket}/{path} is not in the storage", status=404)
        return f"{self._url}/{route}/{quote(bucket, safe='')}/{key}"

    async def _ask(
        self,
        method: str,
        url: str,
        what: str,
        parse: Callable[[Any], _Answer],
        *,
        reads: bool = False,
        headers: dict[str, str] | None = None,
        **arguments: Any,
    ) -> _Answer:
        """Make a call and return what `parse` makes of the JSON answer; retried up to three times.

        If `parse` raises an error, the answer did not come from Storage, and the call is retried as well.
        """
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(ServiceUnavailableError),
            stop=stop_after_attempt(3),
            wait=wait_random_exponential(multiplier=0.3, max=3),
            reraise=True,
        ):
            with attempt:
                answer = await self._ask_once(method, url, what, reads=reads, headers=headers or {}, **arguments)
                try:
                    return parse(answer)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise _unreadable(error) from None
        raise AssertionError("unreachable")

    async def _ask_once(
        self, method: str, url: str, what: str, *, reads: bool, headers: dict[str, str], **arguments: Any
    ) -> Any:
        try:
            names = self._names(url)
            response = await self._http.request(
                method, url, headers={**self._headers, **headers}, extensions=names, **arguments
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _unreadable(error) from None
        if not response.is_success:
            raise _explain(read_answer(response.status_code, response.content), what, reads=reads)
        try:
            return response.json()
        except ValueError as error:
            # An answer that is not JSON is a page of a gateway in front of Storage.
            raise _unreadable(error) from None

    async def sign_download(self, bucket: str, path: str, *, seconds: float) -> str:
        """Return a URL with which anybody can download one object for `seconds`. It is a secret."""
        url = self._object_url("object/sign", bucket, path)
        body = {"expiresIn": int(seconds)}
        token = await self._ask(
            "POST", url, f"{bucket}/{path}", lambda answer: _token_of(answer["signedURL"]), json=body
        )
        return f"{url}?token={token}"

    async def sign_upload(self, bucket: str, path: str) -> str:
        """Return a URL that uploads one object. It may replace an earlier object, so that an upload can be retried."""
        url = self._object_url("object/upload/sign", bucket, path)
        token = await self._ask(
            "POST",
            url,
            f"{bucket}/{path}",
            lambda answer: _token_of(answer["url"]),
            headers={"x-upsert": "true"},
        )
        return f"{url}?token={token}"

    @asynccontextmanager
    async def stream(self, bucket: str, path: str, *, start: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
        """Read an object from the byte `start` in chunks of about a megabyte, with constant memory.

        Raises:
            ObjectMissingError: the object does not exist.
            ServiceRefusedError: with `start`, status 416: the object has fewer bytes, or is not sent in part.
            ServiceUnavailableError: the storage did not answer, or the connection broke.
        """
        url = self._object_url("object", bucket, path)
        headers = {**self._headers, "range": f"bytes={start}-"} if start else self._headers
        try:
            async with self._http.stream("GET", url, headers=headers, extensions=self._names(url)) as response:
                if response.status_code == 200 and start:
                    # The whole object: something between here and Storage knows no parts.
                    raise ServiceRefusedError(_SERVICE, f"{bucket}/{path} was not sent in part", status=416)
                if response.status_code != (206 if start else 200):
                    raise _explain(await read_streamed_answer(response), f"{bucket}/{path}", reads=True)
                yield response.aiter_bytes(1 << 20)
        except httpx.HTTPError as error:
            raise ServiceUnavailableError(
                _SERVICE, f"{_SERVICE} broke off while reading: {why_unreachable(error)}"
            ) from None

    async def read(self, bucket: str, path: str, *, max_bytes: int) -> bytes | None:
        """Read a small object; None if it does not exist.

        Raises:
            ServiceRefusedError: the object is larger than `max_bytes` (status 413).
        """
        content = bytearray()
        try:
            async with self.stream(bucket, path) as chunks:
                async for chunk in chunks:
                    content += chunk
                    if len(content) > max_bytes:
                        raise ServiceRefusedError(
                            _SERVICE, f"{bucket}/{path} is larger than {max_bytes} bytes", status=413
                        )
        except ObjectMissingError:
            return None
        return bytes(content)

    async def size(self, bucket: str, path: str) -> int | None:
        """Return an object's size in bytes; None if it does not exist."""
        try:
            url = self._object_url("object/info", bucket, path)
            return await self._ask("GET", url, f"{bucket}/{path}", _size_of, reads=True)
        except ObjectMissingError:
            return None

    async def write(self, bucket: str, path: str, content: bytes, *, content_type: str) -> None:
        """Store an object; an earlier one with the same name is replaced."""
        url = self._object_url("object", bucket, path)
        headers = {"content-type": content_type, "x-upsert": "true"}
        await self._ask("POST", url, f"{bucket}/{path}", lambda _: None, headers=headers, content=content)

    async def write_stream(
        self,
        bucket: str,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        content_type: str = "application/octet-stream",
        byte_count: int | None = None,
    ) -> None:
        """Store an object whose bytes come in chunks; an earlier one with the same name is replaced.

        With `byte_count` the request says how many will come. The call is not retried, because the chunks can be read
        only once.
        """
        url = self._object_url("object", bucket, path)
        headers = {"content-type": content_type, "x-upsert": "true"}
        if byte_count is not None:
            headers["content-length"] = str(byte_count)
        await self._ask_once("POST", url, f"{bucket}/{path}", reads=False, headers=headers, content=chunks)

    async def copy(self, bucket: str, source: str, target: str) -> None:
        """Copy an object inside its bucket; an earlier target is replaced. The bytes do not pass through the worker.

        Raises:
            ObjectMissingError: the source does not exist.
        """
        body = {"bucketId": bucket, "sourceKey": source, "destinationKey": target}
        url, what = f"{self._url}/object/copy", f"{bucket}/{source}"
        headers, timeout = {"x-upsert": "true"}, httpx.Timeout(_COPY_SECONDS, connect=10)
        try:
            await self._ask("POST", url, what, lambda _: None, headers=headers, json=body, timeout=timeout)
        except ServiceRefusedError as error:
            if error.status != 409:
                raise
            # Versions of Storage before 2025 do not replace an existing target.
            await self.remove(bucket, [target])
            await self._ask("POST", url, what, lambda _: None, headers=headers, json=body, timeout=timeout)

    async def remove(self, bucket: str, paths: Sequence[str]) -> None:
        """Remove at most a thousand objects. It is no error if some of them do not exist."""
        url = f"{self._url}/object/{quote(bucket, safe='')}"
        await self._ask("DELETE", url, f"objects of {bucket}", lambda _: None, json={"prefixes": list(paths)})

    async def buckets(self) -> list[dict[str, Any]]:
        """Return name, limits and visibility of every bucket, as Storage describes them."""

        def parse(found: Any) -> list[dict[str, Any]]:
            if not isinstance(found, list) or not all(isinstance(entry, dict) and "name" in entry for entry in found):
                raise ValueError("no list of buckets")
            return found

        return await self._ask("GET", f"{self._url}/bucket", "the buckets", parse)

    async def takes_size(self, bucket: str, byte_count: int) -> bool | None:
        """Tell whether a file of `byte_count` bytes would be accepted; None if this version of Storage can't tell.

        The project has a limit of its own beside the bucket's, which no call returns. So this begins a resumable
        upload of that length and ends it at once, without sending any byte.
        """
        url = f"{self._url}/upload/resumable"
        names = {"bucketName": bucket, "objectName": PROBE_NAME, "contentType": "application/octet-stream"}
        metadata = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in names.items())
        headers = {**self._headers, "tus-resumable": "1.0.0", "x-upsert": "true"}
        begin = {"upload-length": str(byte_count), "upload-metadata": metadata}
        try:
            response = await self._http.post(url, headers={**headers, **begin}, extensions=self._names(url))
            upload = urlsplit(response.headers.get("location", "")).path.rpartition("/")[2]
            if response.status_code == 201 and upload:
                await self._http.delete(f"{url}/{quote(upload, safe='')}", headers=headers, extensions=self._names(url))
        except httpx.HTTPError as error:
            raise _unreadable(error) from None
        if response.status_code == 201:
            return True
        is_refused = read_answer(response.status_code, response.content).refusal is Refusal.TOO_LARGE
        return False if is_refused else None

    async def opens_to(self, bucket: str, key: str) -> bool:
        """Tell whether the holder of another key can list an object of the bucket."""
        url = f"{self._url}/object/list/{quote(bucket, safe='')}"
        try:
            response = await self._http.post(
                url, headers=api_headers(key), json={"prefix": "", "limit": 1}, extensions=self._names(url)
            )
            found = response.json() if response.is_success else None
        except (httpx.HTTPError, ValueError) as error:
            raise _unreadable(error) from None
        if not response.is_success and read_answer(response.status_code, response.content).refusal is Refusal.PASSING:
            raise ServiceUnavailableError(_SERVICE, f"{_SERVICE} is not available ({response.status_code})")
        return bool(found)


def _token_of(signed_url: str) -> str:
    (token,) = parse_qs(urlsplit(signed_url).query, strict_parsing=True)["token"]
    return quote(token, safe="")


def _size_of(info: dict[str, Any]) -> int:
    return int(info["size"] if "size" in info else info["metadata"]["size"])
