"""The trainer's client for the database: five functions, which anyone with the run's token may call."""

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
from lora_trainer.run.answers import CheckIn, Finished, UploadGrant, UploadRequested

log = logging.getLogger(__name__)

_MAX_ANSWER_BYTES = 4 * 1024**2
"""The largest answer, an upload grant of two hundred signed URLs, takes a tenth of this."""

# PostgREST's code for a function that it does not know with these arguments. This is treated as transient, because it
# is caused by a stale schema cache: the worker called functions of the same release when it launched this run.
_UNKNOWN_FUNCTION = "PGRST202"

_Answer = TypeVar("_Answer", bound=BaseModel)


class _TransientError(ChannelUnreachableError):
    """The call may succeed when it is retried."""


class ChannelClient:
    """Calls the functions `check_in_run`, `heartbeat_run`, `request_upload`, `upload_grant` and `finish_run` as one
    execution of one run.

    A context manager. Transient errors are retried for `patience_seconds`; then, or when the database refuses a
    call, `ChannelUnreachableError` is raised.
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
        if channel.key.startswith(
            "eyJ"
        ):  # a legacy key is a JWT, which is also sent as the bearer; newer keys must not be
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
        """Claim the run for this execution. Later calls are its heartbeat.

        Raises:
            SupersededError: another execution owns the run, or the run has ended.
            CancelledByUserError: the job was cancelled.
            ChannelUnreachableError: the database does not answer, or refuses the call.
        """
        self._require_permission(await self._call("check_in_run", CheckIn, external_job_id=self._external_job_id))

    async def heartbeat(self, progress: dict[str, Any]) -> bool:
        """Say that this execution is still alive, and how far it is. Returns whether the progress was stored.

        The heartbeat matters more than the progress. Where `heartbeat_run` fails, or does not exist because the
        database is of an earlier release, `check_in_run` sends the heartbeat without the progress.

        Raises:
            SupersededError, CancelledByUserError, ChannelUnreachableError: as `check_in` does.
        """
        arguments = self._with_identity(external_job_id=self._external_job_id, progress=progress)
        try:
            answer = await self._call_once("heartbeat_run", CheckIn, arguments)
        except ChannelUnreachableError as error:
            log.debug("progress not stored with the heartbeat: %s", error)
            await self.check_in()
            return False
        self._require_permission(answer)
        return answer.progress_stored

    async def finish(self, result: dict[str, Any]) -> bool:
        """Report the run's result, where no launcher carries it to the worker. Returns whether it was stored: not if
        another execution owns the run, or it has ended.

        Idempotent: of several results of one execution the first is kept.

        Raises:
            ChannelUnreachableError: the database does not answer, refuses the call, or is of an earlier release.
        """
        answer = await self._call("finish_run", Finished, external_job_id=self._external_job_id, result=result)
        return answer.result_stored

    @staticmethod
    def _require_permission(answer: CheckIn) -> None:
        if answer.may_train:
            return
        if answer.reason == "cancelled" or answer.cancel_requested:
            raise CancelledByUserError("The job was cancelled.")
        raise SupersededError(f"Another execution owns this run ({answer.reason}); nothing was trained here.")

    async def request_upload(self, files: list[ArtifactFile], *, renew: bool = False) -> None:
        """Ask the worker for an upload URL for each of these files.

        Idempotent: to ask twice for the same files changes nothing. With `renew` the granted URLs are withdrawn
        and new ones are asked for, because the old ones have expired.

        Raises:
            SupersededError: another execution owns the run.
            ChannelUnreachableError: the database does not answer, or refuses the call.
        """
        answer = await self._call(
            "request_upload", UploadRequested, files=[file.model_dump() for file in files], renew=renew
        )
        if not answer.ok:
            raise SupersededError("Another execution of this run publishes its adapter.")

    async def upload_grant(self) -> str | None:
        """The encrypted upload URLs, or None as long as the worker has not granted them.

        Raises:
            SupersededError: another execution owns the run.
            ChannelUnreachableError: the database does not answer, or refuses the call.
        """
        answer = await self._call("upload_grant", UploadGrant)
        if answer.reason is not None and not answer.granted:
            raise SupersededError("Another execution of this run publishes its adapter.")
        return answer.sealed if answer.granted else None

    async def _call(self, function: str, kind: type[_Answer], **arguments: Any) -> _Answer:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_TransientError),
            wait=wait_random_exponential(multiplier=0.5, max=15),
            stop=stop_after_delay(self._patience_seconds),
            reraise=True,
        )
        return await retrying(self._call_once, function, kind, self._with_identity(**arguments))

    def _with_identity(self, **arguments: Any) -> dict[str, Any]:
        return {"token": self._token, "execution_id": self._execution_id, **arguments}

    async def _call_once(self, function: str, kind: type[_Answer], arguments: dict[str, Any]) -> _Answer:
        try:
            status, body = await self._send(function, arguments)
        except httpx.HTTPError as error:
            raise _TransientError(
                f"The database function {function} could not be reached: {why_unreachable(error)}."
            ) from None
        if status == httpx.codes.OK:
            try:
                return kind.model_validate_json(body, strict=True)
            except ValidationError:
                # A gateway's error page, or a reason that only a newer trainer knows: it decides nothing, so retry.
                raise _TransientError(f"The answer to the database function {function} can't be read.") from None
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
        return _TransientError(f"The database function {function} is not available ({what}).")
    return ChannelUnreachableError(
        f"The database refused {function} ({what}).",
        "Check SUPABASE_URL, the publishable key and that the worker's migrations are applied; "
        "`lora-worker doctor` tries what the trainer calls.",
    )
