"""How RunPod's REST API v2 (api.runpod.io/v2) is called: what is repeated, what an answer means, and its log streams.

What can be repeated without harm (reading, changing, deleting) is repeated when RunPod is unavailable. Creating is not:
names are not unique there, so a repeated POST makes a second resource. Where the answer to a POST is lost, the call
ends with `CreationInDoubtError`, and its caller looks for the resource before it creates it again. Requests that RunPod
did not take (429, no connection) are repeated in any case.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar, TypeVar

import httpx
from pydantic import ValidationError

from lora_contract.connections import why_unreachable
from lora_worker.errors import CreationInDoubtError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.launchers.answers import Answer as HttpAnswer
from lora_worker.launchers.answers import read_answer, retry_after_seconds
from lora_worker.launchers.runpod.event_streams import read_log_lines
from lora_worker.launchers.runpod.problems import explain_refusal
from lora_worker.launchers.runpod.resources import Answer, LogLine, Request
from lora_worker.observability.calls import called

SERVICE = "RunPod's REST API"
MOST_LOG_LINES = 5000
"""RunPod gives no more lines of the past."""
_MEASURED_AS = "account"
"""The service's name in metrics: the jobs' API is `launcher` there."""

_MAX_ATTEMPTS = 5
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 60.0
"""RunPod's shortest window of requests is a minute; for a longer one a command does not wait."""
_DEFAULT_PAUSE_SECONDS = 5.0
_MAX_ITEMS = 10_000
_WINDOW = re.compile(r";\s*r=(\d{1,9})\b[^,]*?;\s*t=(\d{1,9})\b")

AnyAnswer = TypeVar("AnyAnswer", bound=Answer)


class RestClient:
    """One account at RunPod. Subclasses have a method for each operation that they need.

    All of these raise the following. Texts are one sentence each and show no key.

    Raises:
        ServiceRefusedError: RunPod refuses the call; the text names the field or the right that is missing.
        ServiceUnavailableError: RunPod could not be reached or failed, also after retries.
        CreationInDoubtError: (creating only) the answer was lost; the resource may exist.
    """

    rights: ClassVar[str]
    """What the key needs read and write access to, as RunPod's console calls it."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        http: httpx.AsyncClient,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        on_wait: Callable[[str], None] = lambda _: None,
        most_attempts: int = _MAX_ATTEMPTS,
    ) -> None:
        """Make a client; `sleep` also serves those who wait for something that they asked it for.

        `on_wait` is told, in one sentence, why the client waits before it repeats a call.
        """
        self._url = url.rstrip("/")
        self.key = key
        self.http = http
        self.sleep = sleep
        self._on_wait = on_wait
        self._most_attempts = most_attempts

    async def _read_log(
        self,
        path: str,
        doing: str,
        *,
        tail: int,
        since: datetime | None,
        idle_seconds: float,
        most_lines: int,
    ) -> AsyncIterator[LogLine]:
        """Yield the lines of a log, oldest first, from `since` on or the last `tail` (5000 at most).

        RunPod's stream has no end: this one ends after `idle_seconds` without a line, or after `most_lines`. It is not
        retried.
        """
        query = {"tail": str(min(tail, MOST_LOG_LINES))} if since is None else {"since": since.isoformat()}
        timeout = httpx.Timeout(20, read=idle_seconds)
        headers = {**self._headers(), "Accept": "text/event-stream"}
        try:
            async with self.http.stream(
                "GET",
                f"{self._url}{path}",
                params=query,
                headers=headers,
                timeout=timeout,
                extensions=called(_MEASURED_AS, "logs"),
            ) as response:
                if response.status_code != 200:
                    raise await self._refusal(await read_answer(response), doing)
                try:
                    async for line in read_log_lines(response, most_lines=most_lines):
                        yield line
                except httpx.ReadTimeout:
                    return
        except httpx.HTTPError as error:
            raise ServiceUnavailableError(SERVICE, f"RunPod is not reachable: {why_unreachable(error)}") from None

    async def _list(
        self, path: str, within: str, kind: type[AnyAnswer], doing: str, *, query: Mapping[str, str] | None = None
    ) -> list[AnyAnswer]:
        return await self._items(await self._repeated("GET", path, doing, query=query), within, kind, doing)

    async def _items(self, answer: HttpAnswer, within: str, kind: type[AnyAnswer], doing: str) -> list[AnyAnswer]:
        body = await self._body(answer, doing)
        items = body.get(within) if isinstance(body, dict) else None
        if not isinstance(items, list) or len(items) > _MAX_ITEMS:
            raise ServiceUnavailableError(SERVICE, f"RunPod's answer is not readable: could not {doing}")
        return [kind.model_validate(item) for item in items if isinstance(item, dict)]

    async def _found(
        self, path: str, kind: type[AnyAnswer], doing: str, *, query: Mapping[str, str] | None = None
    ) -> AnyAnswer | None:
        try:
            answer = await self._repeated("GET", path, doing, query=query)
        except ServiceRefusedError as error:
            if error.status == 404:
                return None
            raise
        return self._read(kind, await self._body(answer, doing), doing)

    async def _change(self, path: str, change: Request, kind: type[AnyAnswer], doing: str) -> AnyAnswer:
        answer = await self._repeated("PATCH", path, doing, body=change.body())
        return self._read(kind, await self._body(answer, doing), doing)

    async def _delete(self, path: str, doing: str) -> None:
        try:
            await self._repeated("DELETE", path, doing)
        except ServiceRefusedError as error:
            if error.status != 404:
                raise

    async def _create(self, path: str, wanted: Request, kind: type[AnyAnswer], doing: str) -> AnyAnswer:
        answer = await self._repeated("POST", path, doing, body=wanted.body())
        try:
            made = self._read(kind, await self._body(answer, doing), doing)
        except ServiceUnavailableError as error:
            raise CreationInDoubtError(SERVICE, str(error)) from None
        if getattr(made, "id", None) is None:
            raise CreationInDoubtError(SERVICE, f"RunPod's answer holds no id: could not {doing}")
        return made

    @staticmethod
    def _read(kind: type[AnyAnswer], body: Any, doing: str) -> AnyAnswer:
        try:
            return kind.model_validate(body)
        except ValidationError:
            raise ServiceUnavailableError(SERVICE, f"RunPod's answer is not readable: could not {doing}") from None

    @staticmethod
    async def _body(answer: HttpAnswer, doing: str) -> Any:
        try:
            return await answer.json()
        except (ValueError, RecursionError):
            raise ServiceUnavailableError(SERVICE, f"RunPod's answer is not readable: could not {doing}") from None

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}", "Accept": "application/json"}

    async def _repeated(
        self, method: str, path: str, doing: str, *, query: Mapping[str, str] | None = None, body: Any = None
    ) -> HttpAnswer:
        """Send a request until RunPod answers it, at most `most_attempts` times; a 2xx is returned."""
        for attempt in range(1, self._most_attempts + 1):
            try:
                return await self._once(method, path, doing, query=query, body=body)
            except CreationInDoubtError:
                raise
            except ServiceUnavailableError as error:
                wait = error.retry_after_seconds
                if wait is None:
                    wait = _FIRST_WAIT_SECONDS * 2**attempt * random.uniform(0.5, 1)  # noqa: S311 jitter, no secret
                if attempt == self._most_attempts or wait > _LONGEST_WAIT_SECONDS:
                    raise
                self._on_wait(f"{error}; next try in {wait:.0f} s")
            await self.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    async def _once(
        self, method: str, path: str, doing: str, *, query: Mapping[str, str] | None, body: Any
    ) -> HttpAnswer:
        headers, content = self._headers(), None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body, allow_nan=False).encode()
        creates = method == "POST"
        try:
            async with self.http.stream(
                method,
                f"{self._url}{path}",
                params=query,
                headers=headers,
                content=content,
                # The first part of a path is a name of our own code; ids come after it.
                extensions=called(_MEASURED_AS, path.split("/")[1]),
            ) as response:
                answer = await read_answer(response)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            # Nothing was sent.
            raise ServiceUnavailableError(SERVICE, f"RunPod is not reachable: {why_unreachable(error)}") from None
        except httpx.HTTPError as error:
            lost = CreationInDoubtError if creates else ServiceUnavailableError
            raise lost(SERVICE, f"RunPod gave no answer ({doing}): {why_unreachable(error)}") from None
        if answer.is_success:
            return answer
        if creates and answer.status_code >= 500:
            raise CreationInDoubtError(SERVICE, f"RunPod failed ({answer.status_code}) while it should {doing}")
        raise await self._refusal(answer, doing)

    async def _refusal(self, answer: HttpAnswer, doing: str) -> ServiceUnavailableError | ServiceRefusedError:
        status = answer.status_code
        if status == 429:
            seconds = _pause_seconds(answer.headers)
            return ServiceUnavailableError(
                SERVICE,
                f"RunPod takes no more requests for {seconds:.0f} s (429): could not {doing} yet",
                retry_after_seconds=seconds,
            )
        if status >= 500 or status == 408:
            return ServiceUnavailableError(SERVICE, f"RunPod failed ({status}) while it should {doing}")
        try:
            problem = await answer.json()
        except (ValueError, RecursionError):
            problem = None
        return ServiceRefusedError(
            SERVICE, explain_refusal(status, doing, problem, key=self.key, rights=self.rights), status=status
        )


def _pause_seconds(headers: Mapping[str, str]) -> float:
    """Return how long to wait after a 429: `Retry-After`, or until the last window of `RateLimit` that is used up."""
    said = retry_after_seconds(headers)
    if said is not None:
        return said
    windows = [(int(left), int(seconds)) for left, seconds in _WINDOW.findall(headers.get("ratelimit", ""))]
    return float(max((seconds for left, seconds in windows if left == 0), default=_DEFAULT_PAUSE_SECONDS))
