"""How the worker calls the database's functions: with retries, and with arguments that Postgres can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from tenacity.wait import wait_base

from lora_worker.database.function import Function, T
from lora_worker.database.rest import Rest
from lora_worker.errors import ServiceUnavailableError


def storable_json(value: Any) -> Any:
    """Make a value that JSON and Postgres can hold: without zero characters, lone surrogates, NaN and infinity.

    UUIDs become texts.

    Names, notes and errors come from datasets and GPU containers and may contain any of these. The database would
    refuse the whole outcome of a run because of one of them, and again at every retry.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, str):
        return value if value.isascii() and "\x00" not in value else _clean(value)
    if isinstance(value, Mapping):
        return {storable_json(key): storable_json(item) for key, item in value.items()}
    return [storable_json(item) for item in value] if isinstance(value, list | tuple) else value


def _clean(text: str) -> str:
    return text.replace("\x00", "").encode(errors="replace").decode()


class Caller:
    """One worker's access to the database. The methods of its subclasses raise only `ServiceError`s."""

    def __init__(self, url: str, key: str, *, worker: str, lease_seconds: int, http: httpx.AsyncClient) -> None:
        self.worker = worker
        self.lease_seconds = lease_seconds
        self.rest = Rest(url, key, http=http)
        self._wait: wait_base = wait_random_exponential(multiplier=0.3, max=3)

    async def _call(self, function: Function[T], attempts: int = 3, **arguments: Any) -> T:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(ServiceUnavailableError),
            stop=stop_after_attempt(attempts),
            wait=self._wait,
            reraise=True,
        ):
            with attempt:
                return await self.rest.call(function, storable_json(arguments))
        raise AssertionError("unreachable")
