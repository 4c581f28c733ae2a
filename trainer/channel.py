"""The trainer's line to the database: three functions, callable with the run's token only."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any, Self

import httpx
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from trainer.errors import CancelledByUserError, ChannelUnreachableError, SupersededError
from trainer.protocol import ArtifactFile, Channel, CheckIn, UploadGrant

log = logging.getLogger(__name__)

_RETRIED_STATUSES = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}


class _PassingFaultError(ChannelUnreachableError):
    """It may answer later."""


class ChannelClient:
    """Calls `check_in_run`, `request_upload` and `upload_grant` as one execution of one run.

    Transient faults are retried for `patience_seconds`; what stays refused raises
    `ChannelUnreachableError`. A context manager.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        external_job_id: str,
        execution_id: str,
        patience_seconds: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {"apikey": channel.key}
        if channel.key.startswith("eyJ"):  # a legacy JWT key is also the bearer; the newer keys must not be
            headers["authorization"] = f"Bearer {channel.key}"
        self._http = httpx.AsyncClient(
            base_url=f"{channel.url.rstrip('/')}/rest/v1/rpc/",
            headers=headers,
            timeout=httpx.Timeout(20, connect=10),
            transport=transport,
        )
        self._token = channel.token
        self._external_job_id = external_job_id
        self._execution_id = execution_id
        self._patience_seconds = patience_seconds

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def check_in(self) -> None:
        """Claim the run for this execution, or say that it is still alive.

        Raises:
            SupersededError: another execution owns the run, or the run has ended.
            CancelledByUserError: the job was cancelled.
            ChannelUnreachableError: no answer.
        """
        answer = CheckIn.model_validate(await self._call("check_in_run", external_job_id=self._external_job_id))
        if answer.may_train:
            return
        if answer.reason == "cancelled" or answer.cancel_requested:
            raise CancelledByUserError("The job was cancelled.")
        raise SupersededError(f"Another execution owns this run ({answer.reason}); nothing was trained here.")

    async def request_upload(self, files: list[ArtifactFile], *, renew: bool = False) -> None:
        """Say which files are to be published.

        Asking twice for the same files changes nothing, unless `renew` says that the URLs granted for them have
        run out: then the grant is withdrawn.

        Raises:
            SupersededError: another execution owns the run.
            ChannelUnreachableError: no answer.
        """
        answer = await self._call("request_upload", files=[file.model_dump() for file in files], renew=renew)
        if not answer.get("ok"):
            raise SupersededError("Another execution of this run publishes its adapter.")

    async def upload_grant(self) -> str | None:
        """The sealed upload URLs, or None while the worker has not granted them.

        Raises:
            SupersededError: another execution owns the run.
            ChannelUnreachableError: no answer.
        """
        answer = UploadGrant.model_validate(await self._call("upload_grant"))
        if answer.reason is not None and not answer.granted:
            raise SupersededError("Another execution of this run publishes its adapter.")
        return answer.sealed if answer.granted else None

    async def _call(self, function: str, **arguments: Any) -> dict[str, Any]:
        arguments = {"token": self._token, "execution_id": self._execution_id, **arguments}
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_PassingFaultError),
            wait=wait_random_exponential(multiplier=0.5, max=15),
            stop=stop_after_delay(self._patience_seconds),
            reraise=True,
        )
        return await retrying(self._call_once, function, arguments)

    async def _call_once(self, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            response = await self._http.post(function, json=arguments)
        except httpx.TransportError as error:
            raise _PassingFaultError(
                f"The database function {function} could not be reached ({type(error).__name__})."
            ) from None
        if response.status_code in _RETRIED_STATUSES:
            raise _PassingFaultError(f"The database function {function} answered {response.status_code}.")
        if response.status_code != 200:
            raise ChannelUnreachableError(
                f"The database refused {function} with status {response.status_code}.",
                "Check SUPABASE_URL, the publishable key and that the worker's migrations are applied.",
            )
        answer: dict[str, Any] = response.json()
        return answer
