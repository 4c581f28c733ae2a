"""The trainer's line to the database: four functions, callable with the run's token only."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from lora_contract.connections import why_unreachable
from lora_contract.protocol import ArtifactFile, Channel
from lora_contract.rest_errors import RestError, read_error
from lora_trainer.errors import CancelledByUserError, ChannelUnreachableError, SupersededError
from lora_trainer.run.answers import CheckIn, UploadGrant, UploadRequested

log = logging.getLogger(__name__)

_MAX_ANSWER_BYTES = 4 * 1024**2
"""Two hundred signed URLs, sealed, are a tenth of this."""

# PostgREST does not know the function, or not with these arguments: the worker knew them when it launched this run.
_UNKNOWN_FUNCTION = "PGRST202"

_Answer = TypeVar("_Answer", bound=BaseModel)


class _PassingFaultError(ChannelUnreachableError):
    """It may answer later."""


class ChannelClient:
    """Calls `check_in_run`, `heartbeat_run`, `request_upload` and `upload_grant` as one execution of one run.

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
        self._obey(await self._call("check_in_run", CheckIn, external_job_id=self._external_job_id))

    async def heartbeat(self, progress: dict[str, Any]) -> bool:
        """Say that this execution is still alive, and how far it is; whether the progress was stored.

        The heartbeat counts without the progress, too: it is sent by `check_in_run` where the database has no
        `heartbeat_run`, since it is of an earlier release, and where that call fails in any other way.

        Raises:
            SupersededError, CancelledByUserError, ChannelUnreachableError: as `check_in` does.
        """
        arguments = self._identified(external_job_id=self._external_job_id, progress=progress)
        try:
            answer = await self._call_once("heartbeat_run", CheckIn, arguments)
        except ChannelUnreachableError as error:
            log.debug("progress not stored with the heartbeat: %s", error)
            await self.check_in()
            return False
        self._obey(answer)
        return answer.progress_stored

    @staticmethod
    def _obey(answer: CheckIn) -> None:
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
        answer = await self._call(
            "request_upload", UploadRequested, files=[file.model_dump() for file in files], renew=renew
        )
        if not answer.ok:
            raise SupersededError("Another execution of this run publishes its adapter.")

    async def upload_grant(self) -> str | None:
        """The sealed upload URLs, or None while the worker has not granted them.

        Raises:
            SupersededError: another execution owns the run.
            ChannelUnreachableError: no answer.
        """
        answer = await self._call("upload_grant", UploadGrant)
        if answer.reason is not None and not answer.granted:
            raise SupersededError("Another execution of this run publishes its adapter.")
        return answer.sealed if answer.granted else None

    async def _call(self, function: str, kind: type[_Answer], **arguments: Any) -> _Answer:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_PassingFaultError),
            wait=wait_random_exponential(multiplier=0.5, max=15),
            stop=stop_after_delay(self._patience_seconds),
            reraise=True,
        )
        return await retrying(self._call_once, function, kind, self._identified(**arguments))

    def _identified(self, **arguments: Any) -> dict[str, Any]:
        return {"token": self._token, "execution_id": self._execution_id, **arguments}

    async def _call_once(self, function: str, kind: type[_Answer], arguments: dict[str, Any]) -> _Answer:
        try:
            status, body = await self._send(function, arguments)
        except httpx.HTTPError as error:
            raise _PassingFaultError(
                f"The database function {function} could not be reached: {why_unreachable(error)}."
            ) from None
        if status == httpx.codes.OK:
            try:
                return kind.model_validate_json(body, strict=True)
            except ValidationError:
                # A gateway's page, or a word that only a newer trainer knows: what it says is nobody's verdict.
                raise _PassingFaultError(f"What came back for {function} is no answer to it.") from None
        raise _explain(function, read_error(status, body))

    async def _send(self, function: str, arguments: dict[str, Any]) -> tuple[int, bytes]:
        body = bytearray()
        async with self._http.stream("POST", function, json=arguments) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _MAX_ANSWER_BYTES:
                    break
        return response.status_code, bytes(body)


def _explain(function: str, error: RestError) -> ChannelUnreachableError:
    what = error.code or f"HTTP {error.status}"
    if error.passes or error.is_page or error.code == _UNKNOWN_FUNCTION:
        return _PassingFaultError(f"The database function {function} is not available ({what}).")
    return ChannelUnreachableError(
        f"The database refused {function} ({what}).",
        "Check SUPABASE_URL, the publishable key and that the worker's migrations are applied; "
        "`lora-worker doctor` tries what the trainer calls.",
    )
