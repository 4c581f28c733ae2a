"""The HTTP calls of a launcher: with its key, within its bounds, and what the answer to a launch means."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from lora_contract.connections import why_unreachable
from lora_worker.errors import LaunchInDoubtError, LaunchRefusedError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.launchers.answers import Answer, read_answer, retry_after_seconds
from lora_worker.launchers.base import EndpointHealth, LaunchState, Observation
from lora_worker.launchers.limits import CallLimit, PausedError
from lora_worker.observability.calls import called

_REQUEST_REFUSED = frozenset({400, 413, 422})
"""With these statuses the other side blames the request itself, and with others the key or the address."""
_CANCEL_ATTEMPTS = 3


class HttpCalls:
    """Calls the API of a launcher. `limits` has a bound for each operation, by which calls are also measured."""

    def __init__(self, http: httpx.AsyncClient, key: str, *, service: str, limits: Mapping[str, CallLimit]) -> None:
        self._http = http
        self._headers = {"Authorization": f"Bearer {key}"}
        self._service = service
        self._limits = limits

    async def send(self, operation: str, method: str, url: str, *, content: bytes | None = None) -> Answer:
        """Send one call and read its answer. While the other side wants none, the answer is a 429 of our own.

        Raises:
            httpx.HTTPError: there was no answer.
        """
        headers = self._headers if content is None else {**self._headers, "Content-Type": "application/json"}
        limit = self._limits[operation]
        try:
            async with limit.place() as began_at:
                names = called("launcher", operation)
                async with self._http.stream(
                    method, url, headers=headers, content=content, extensions=names
                ) as response:
                    answer = await read_answer(response)
                if answer.status_code == 429:
                    limit.refused(began_at, pause_seconds=retry_after_seconds(answer.headers))
                else:
                    limit.taken()
                return answer
        except PausedError as pause:
            # As the other side would answer.
            return Answer(429, {"retry-after": str(math.ceil(pause.seconds))}, b"")

    async def post_launch(self, operation: str, url: str, content: bytes, *, explain: Callable[[int], str]) -> Answer:
        """Send a launch; gives the answer that took it. `explain` says in a sentence what a refusal's status means.

        Raises: as `Launcher.launch`.
        """
        try:
            answer = await self.send(operation, "POST", url, content=content)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            text = f"{self._service} is not reachable: {why_unreachable(error)}"
            raise ServiceUnavailableError(self._service, text) from None
        except httpx.HTTPError as error:
            text = f"{self._service} did not answer the launch: {why_unreachable(error)}"
            raise LaunchInDoubtError(self._service, text) from None
        status = answer.status_code
        if status == 429:
            raise ServiceUnavailableError(
                self._service, f"{self._service} takes no more requests now (429)",
                retry_after_seconds=retry_after_seconds(answer.headers),
            )  # fmt: skip
        if status >= 500:
            raise LaunchInDoubtError(self._service, f"{self._service} failed while it took the launch ({status})")
        if status >= 400:
            refused = LaunchRefusedError if status in _REQUEST_REFUSED else ServiceRefusedError
            raise refused(self._service, explain(status), status=status)
        return answer

    async def look(
        self,
        operation: str,
        url: str,
        *,
        explain: Callable[[int], str],
        read: Callable[[Answer], Awaitable[Observation]],
        health: Callable[[], Awaitable[EndpointHealth]],
    ) -> Observation:
        """Look at a launch; `read` reads the answer that tells of it. See `Launcher.observe`."""
        try:
            answer = await self.send(operation, "GET", url)
        except httpx.HTTPError as error:
            return Observation(LaunchState.UNKNOWN, reason=why_unreachable(error))
        if answer.status_code == 404:
            # A wrong address answers 404 too, and then every run would look lost.
            seen = await health()
            state = LaunchState.MISSING if seen.reachable else LaunchState.UNKNOWN
            return Observation(state, reason=(None if seen.reachable else seen.problem) or "404")
        if answer.status_code in {401, 403}:
            return Observation(LaunchState.UNKNOWN, reason=explain(answer.status_code))
        if answer.status_code != 200:
            return Observation(LaunchState.UNKNOWN, reason=f"HTTP {answer.status_code}")
        return await read(answer)

    async def post_cancel(self, operation: str, url: str) -> bool:
        """Ask for the end of a launch, a few times; True when the request was taken, or nobody knows the launch."""

        async def post() -> Answer:
            answer = await self.send(operation, "POST", url)
            if answer.status_code == 429 or answer.status_code >= 500:
                raise httpx.RemoteProtocolError(f"HTTP {answer.status_code}")
            return answer

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(httpx.HTTPError),
            stop=stop_after_attempt(_CANCEL_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.3, max=2),
            reraise=True,
        )
        try:
            answer: Answer = await retrying(post)
        except httpx.HTTPError:
            return False
        return answer.status_code == 404 or answer.is_success
