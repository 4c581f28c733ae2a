"""What launchers with an HTTP API share: where the key may go, the bounds of their calls, and what an answer means."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from lora_contract.connections import why_unreachable
from lora_worker.errors import LaunchInDoubtError, LaunchRefusedError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.launchers.addresses import Addresses
from lora_worker.launchers.answers import Answer, retry_after_seconds
from lora_worker.launchers.base import EndpointHealth, Guide, LaunchRef, LaunchState, Observation, Policy
from lora_worker.launchers.calls import call_within
from lora_worker.launchers.limits import CallLimit

MAX_REQUEST_BYTES = 10_000_000
"""The largest request that is sent: RunPod takes no larger one, and our GPU server keeps to the same."""
_REQUEST_REFUSED = frozenset({400, 413, 422})
"""With these statuses the other side blames the request itself, and with others the key or the address."""
_CANCEL_ATTEMPTS = 3
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
"""Containers name their own: one with a slash or dots would lead to another route, with the key."""


class HttpLauncher(ABC):
    """A launcher whose endpoints are addresses with four routes below them.

    A subclass names the routes, and reads the answers. Its `endpoint` is where launches go; the key is sent there and
    to `addresses`' others, and nowhere else. `limits` has a bound for each operation, the last part of its route.
    """

    guide: Guide
    launch_route: ClassVar[str]
    status_route: ClassVar[str]
    """The launch's id follows it, as it follows `cancel_route`."""
    cancel_route: ClassVar[str]
    id_key: ClassVar[str]
    """Where the answer to a launch holds its id."""
    takes_errands = True
    elsewhere: ClassVar[str]
    """Why an address that a row names is not called, as the end of a sentence with what to do."""

    def __init__(
        self, addresses: Addresses, key: str, *, http: httpx.AsyncClient, limits: Mapping[str, CallLimit]
    ) -> None:
        self.endpoint = addresses.present
        self._addresses = addresses
        self._http = http
        self._headers = {"Authorization": f"Bearer {key}"}
        self._limits = limits

    @staticmethod
    @abstractmethod
    def launch_body(payload: dict[str, Any], policy: Policy) -> dict[str, Any]:
        """The request of a launch."""

    @staticmethod
    @abstractmethod
    def explain_refusal(status: int) -> str:
        """What a refusal by this status means, in a sentence for the operator."""

    @staticmethod
    @abstractmethod
    async def read_observation(answer: Answer) -> Observation:
        """What the answer to a look at a launch says. What can't be read is UNKNOWN."""

    @staticmethod
    @abstractmethod
    async def read_health(answer: Answer) -> EndpointHealth:
        """What the answer to `/health` says.

        Raises:
            ValueError: it can't be read; KeyError, TypeError and RecursionError mean the same.
        """

    def reaches(self, endpoint: str) -> bool:
        """Whether the key may go to an endpoint. See `Launcher.reaches`."""
        return self._addresses.of(endpoint) is not None

    async def launch(self, payload: dict[str, Any], policy: Policy) -> str:
        """Send a launch. See `Launcher.launch`.

        Only what certainly was not accepted is sent again by the worker: refused connections and 429.
        """
        service = self.guide.title
        content = json.dumps(self.launch_body(payload, policy), allow_nan=False).encode()
        if len(content) > MAX_REQUEST_BYTES:
            raise LaunchRefusedError(service, "the job's request is larger than the 10 MB that are taken", status=413)
        answer = await self._post_launch(content)
        try:
            external_job_id = (await answer.json())[self.id_key]
        except (ValueError, KeyError, TypeError, RecursionError):
            external_job_id = None
        if not isinstance(external_job_id, str) or not _JOB_ID.fullmatch(external_job_id):
            raise LaunchInDoubtError(service, f"{service}'s answer to the launch holds no usable id")
        return external_job_id

    async def observe(self, launch: LaunchRef) -> Observation:
        """Look at a launch. See `Launcher.observe`."""
        if not _JOB_ID.fullmatch(launch.external_job_id):
            return Observation(LaunchState.MISSING, reason="no launch has such an id")
        base = self._addresses.of(launch.endpoint)
        if base is None:
            return Observation(LaunchState.UNKNOWN, reason=self.elsewhere)
        try:
            answer = await self._send("GET", f"{base}/{self.status_route}", launch.external_job_id)
        except httpx.HTTPError as error:
            return Observation(LaunchState.UNKNOWN, reason=why_unreachable(error))
        if answer.status_code == 404:
            # A wrong address answers 404 too, and then every run would look lost.
            seen = await self.health(base)
            state = LaunchState.MISSING if seen.reachable else LaunchState.UNKNOWN
            return Observation(state, reason=(None if seen.reachable else seen.problem) or "404")
        if answer.status_code in {401, 403}:
            return Observation(LaunchState.UNKNOWN, reason=self.explain_refusal(answer.status_code))
        if answer.status_code != 200:
            return Observation(LaunchState.UNKNOWN, reason=f"HTTP {answer.status_code}")
        return await self.read_observation(answer)

    async def cancel(self, launch: LaunchRef) -> bool:
        """Ask for the end of a launch, a few times. See `Launcher.cancel`."""
        if not _JOB_ID.fullmatch(launch.external_job_id):
            return True
        base = self._addresses.of(launch.endpoint)
        if base is None:
            return False

        async def post() -> Answer:
            answer = await self._send("POST", f"{base}/{self.cancel_route}", launch.external_job_id)
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

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        """Look at an endpoint. See `Launcher.health`."""
        base = self._addresses.of(endpoint)
        if base is None:
            return EndpointHealth(False, 0, 0, self.elsewhere)
        try:
            answer = await self._send("GET", f"{base}/health")
        except httpx.HTTPError as error:
            return EndpointHealth(False, 0, 0, f"{self.guide.title} is not reachable: {why_unreachable(error)}")
        if answer.status_code != 200:
            return EndpointHealth(False, 0, 0, self.explain_refusal(answer.status_code))
        try:
            return await self.read_health(answer)
        except (ValueError, KeyError, TypeError, RecursionError):
            return EndpointHealth(False, 0, 0, f"{self.guide.title}'s answer to /health is not readable")

    async def _post_launch(self, content: bytes) -> Answer:
        """Send a launch; gives the answer that took it. Raises: as `Launcher.launch`."""
        service = self.guide.title
        try:
            answer = await self._send("POST", f"{self.endpoint}/{self.launch_route}", content=content)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            text = f"{service} is not reachable: {why_unreachable(error)}"
            raise ServiceUnavailableError(service, text) from None
        except httpx.HTTPError as error:
            text = f"{service} did not answer the launch: {why_unreachable(error)}"
            raise LaunchInDoubtError(service, text) from None
        status = answer.status_code
        if status == 429:
            raise ServiceUnavailableError(
                service, f"{service} takes no more requests now (429)",
                retry_after_seconds=retry_after_seconds(answer.headers),
            )  # fmt: skip
        if status >= 500:
            raise LaunchInDoubtError(service, f"{service} failed while it took the launch ({status})")
        if status >= 400:
            refused = LaunchRefusedError if status in _REQUEST_REFUSED else ServiceRefusedError
            raise refused(service, self.explain_refusal(status), status=status)
        return answer

    async def _send(
        self, method: str, url: str, external_job_id: str | None = None, *, content: bytes | None = None
    ) -> Answer:
        """Send one call and read its answer. While the other side wants none, the answer is a 429 of our own.

        Raises:
            httpx.HTTPError: there was no answer.
        """
        operation = url.rpartition("/")[2]
        url = f"{url}/{external_job_id}" if external_job_id else url
        return await call_within(
            self._limits[operation], self._http, operation, method, url, headers=self._headers, content=content
        )
