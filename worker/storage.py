"""Supabase Storage: signed URLs, streamed reads, uploads, sizes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError
from storage3 import AsyncStorageClient
from storage3.exceptions import StorageApiError
from storage3.types import CreateSignedUploadUrlOptions
from storage3.utils import StorageException
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from worker.errors import ObjectMissingError, ServiceRefusedError, ServiceUnavailableError
from worker.queue import api_headers

_SERVICE = "Supabase Storage"
_Answer = TypeVar("_Answer")


# Storage answers 400 for most of what is wrong; the status inside, or only the words, say what it is.
_MISSING = re.compile(r"NoSuchKey|NoSuchBucket|not.?found", re.IGNORECASE)
_KEY_REFUSED = re.compile(r"api ?key|jw[ts]|signature|authori[sz]|access ?denied", re.IGNORECASE)


def _explain(status: int, words: str, what: str, *, reads: bool = False) -> Exception:
    """What an answer that is no success means for the worker."""
    # The words that refuse a name repeat it, and it may hold any word.
    speaks_of_key = _KEY_REFUSED.search(words) and "InvalidKey" not in words
    if status in {401, 403} or (status == 400 and speaks_of_key):
        return ServiceRefusedError(_SERVICE, f"{_SERVICE} refused the key for {what}", status=status)
    # A name that Storage does not even take is the name of no object, and asking again changes nothing.
    if status == 404 or _MISSING.search(words) or (reads and status == 400):
        return ObjectMissingError(_SERVICE, f"{what} is not in the storage", status=404)
    if status == 429 or status >= 500:
        return ServiceUnavailableError(_SERVICE, f"{_SERVICE} is not available ({status})")
    return ServiceRefusedError(_SERVICE, f"{_SERVICE} refused {what} ({status})", status=status)


def _status(inner: Any, outer: int) -> int:
    text = str(inner)
    return int(text) if text.isdecimal() else outer


def _explain_answer(response: httpx.Response, what: str, *, reads: bool = False) -> Exception:
    """`_explain` for an answer as it came; its body has been read."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        body = {}
    words = " ".join(str(body.get(key, "")) for key in ("error", "code", "message"))
    return _explain(_status(body.get("statusCode"), response.status_code), words, what, reads=reads)


class Storage:
    """The buckets, with the service's key. Every method raises `ServiceError`s and nothing else."""

    def __init__(self, url: str, key: str, *, http: httpx.AsyncClient) -> None:
        self._url = f"{url}/storage/v1"
        self._headers = api_headers(key)
        self._http = http
        self._client = AsyncStorageClient(f"{self._url}/", headers=self._headers, http_client=http)

    async def _call(self, call: Callable[[], Awaitable[_Answer]], what: str, *, reads: bool = False) -> _Answer:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(ServiceUnavailableError),
            stop=stop_after_attempt(3),
            wait=wait_random_exponential(multiplier=0.3, max=3),
            reraise=True,
        ):
            with attempt:
                try:
                    return await call()
                except StorageApiError as error:
                    words = f"{error.code} {error.message}"
                    raise _explain(_status(error.status, 400), words, what, reads=reads) from None
                except httpx.HTTPStatusError as error:
                    raise _explain_answer(error.response, what, reads=reads) from None
                except (httpx.HTTPError, StorageException, ValidationError, ValueError) as error:
                    raise ServiceUnavailableError(
                        _SERVICE, f"{_SERVICE} did not answer properly ({type(error).__name__})"
                    ) from None
        raise AssertionError("unreachable")

    async def sign_download(self, bucket: str, path: str, *, seconds: float) -> str:
        """A URL that downloads one object for so many seconds. It is a secret."""
        answer = await self._call(
            lambda: self._client.from_(bucket).create_signed_url(path, int(seconds)), f"{bucket}/{path}"
        )
        return str(answer["signedURL"])

    async def sign_upload(self, bucket: str, path: str) -> str:
        """A URL that uploads one object, also over an earlier one: a retried run must be able to repeat."""
        answer = await self._call(
            lambda: self._client.from_(bucket).create_signed_upload_url(
                path, CreateSignedUploadUrlOptions(upsert="true")
            ),
            f"{bucket}/{path}",
        )
        return str(answer["signed_url"])

    @asynccontextmanager
    async def stream(self, bucket: str, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The object's bytes in chunks, in constant memory."""
        url = f"{self._url}/object/{quote(bucket, safe='')}/{quote(path)}"
        try:
            async with self._http.stream("GET", url, headers=self._headers) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _explain_answer(response, f"{bucket}/{path}", reads=True)
                yield response.aiter_bytes(1 << 20)
        except httpx.HTTPError as error:
            raise ServiceUnavailableError(
                _SERVICE, f"{_SERVICE} broke off while reading ({type(error).__name__})"
            ) from None

    async def read(self, bucket: str, path: str, *, max_bytes: int) -> bytes | None:
        """A small object whole; None where there is none.

        Raises:
            ServiceRefusedError: it is larger than `max_bytes`.
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
        """The object's size in bytes; None where there is none."""
        try:
            info = await self._call(lambda: self._client.from_(bucket).info(path), f"{bucket}/{path}", reads=True)
        except ObjectMissingError:
            return None
        return int(info.get("size", (info.get("metadata") or {}).get("size", -1)))

    async def write(self, bucket: str, path: str, content: bytes, *, content_type: str) -> None:
        """Put an object, also over an earlier one."""
        await self._call(
            lambda: self._client.from_(bucket).upload(path, content, {"content-type": content_type, "upsert": "true"}),
            f"{bucket}/{path}",
        )

    async def buckets(self) -> list[dict[str, Any]]:
        """Name and limits of every bucket."""

        async def fetch() -> list[dict[str, Any]]:
            response = await self._http.get(f"{self._url}/bucket", headers=self._headers)
            response.raise_for_status()
            found = response.json()
            if not isinstance(found, list) or not all(isinstance(entry, dict) and "name" in entry for entry in found):
                raise ValueError("no list of buckets")
            return found

        return await self._call(fetch, "the buckets")

    async def opens_to(self, bucket: str, key: str) -> bool:
        """Whether the holder of another key sees an object in the bucket."""

        async def look() -> bool:
            url = f"{self._url}/object/list/{quote(bucket)}"
            response = await self._http.post(url, headers=api_headers(key), json={"prefix": "", "limit": 1})
            if response.is_server_error:
                response.raise_for_status()
            return response.is_success and bool(response.json())

        return await self._call(look, f"the bucket {bucket}")
