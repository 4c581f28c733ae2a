"""Puts the artifact into the bucket: asks for upload URLs, waits for them, and uploads each file, the manifest last.

The trainer has no key of the storage. The worker signs one upload URL for each file that `request_upload` names.
`manifest.json` is uploaded last, so where it exists the artifact is complete.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from lora_contract.connections import why_unreachable
from lora_contract.crash_points import crash_point
from lora_contract.curve import manifest_points
from lora_contract.grants import GrantUnreadableError, lifetime_seconds, open_urls
from lora_contract.object_names import storable
from lora_contract.protocol import MANIFEST_NAME, ArtifactFile, Manifest, Request
from lora_contract.storage_answers import Answer, Refusal, read_answer
from lora_trainer.errors import ChannelUnreachableError, GrantMissingError, StorageRefusedError, UploadFailedError
from lora_trainer.run.channel import ChannelClient
from lora_trainer.run.files import sha256_of
from lora_trainer.run.sizes import check_files, encode_manifest
from lora_trainer.run.task import Outcome

_ATTEMPTS = 5
_MAX_URLS_PER_FILE = 5
"""After so many expired URLs for one file, publishing fails."""
_CHUNK_BYTES = 1 << 20


class _TransientError(UploadFailedError):
    """The upload may succeed when it is retried."""


class _UrlExpiredError(UploadFailedError):
    """The upload needs a new URL."""


def _files_under(artifact: Path) -> list[Path]:
    # Sorted by path, so that a repeated request for the same artifact is equal to the first.
    return [path for path in sorted(artifact.rglob("*")) if path.is_file()]


def _describe(path: Path, artifact: Path) -> ArtifactFile:
    """The file's name, size and sha256, and the `path` in the bucket: only characters that the storage takes."""
    return ArtifactFile(
        name=path.name,
        path=storable(path.relative_to(artifact).as_posix()),
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
    )


async def publish(
    artifact: Path,
    outcome: Outcome,
    request: Request,
    channel: ChannelClient,
    *,
    grant_poll_seconds: float,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Manifest:
    """Upload the files in the folder `artifact`, then the manifest, which is returned.

    Idempotent: the same files go to the same places.

    Raises:
        ArtifactTooLargeError: it has more files, or a larger manifest, than the worker takes. Nothing was uploaded.
        GrantMissingError: the worker granted no upload within `request.limits.grant_wait_seconds`.
        StorageRefusedError: the storage takes no file of this size or type.
        UploadFailedError: an upload was refused for another reason, or broke off too often.
        SupersededError: another execution owns the run.
    """
    sources = await asyncio.to_thread(_files_under, artifact)
    files = [await asyncio.to_thread(_describe, path, artifact) for path in sources]
    check_files(files)
    points = manifest_points(
        outcome.points,
        total_steps=outcome.summary.total_steps or len(outcome.points),
        chart_points=request.limits.chart_points,
    )
    manifest, content = encode_manifest(
        Manifest(
            job_id=request.job_id,
            run_id=request.run_id,
            files=files,
            metrics=outcome.metrics,
            summary=outcome.summary,
            points=points,
            serving=outcome.serving,
            evaluation=outcome.evaluation,
            application=outcome.application,
        )
    )
    async with httpx.AsyncClient(timeout=httpx.Timeout(300, connect=15), transport=transport) as http:
        uploads = _Uploads(http=http, files=files, request=request, channel=channel, poll_seconds=grant_poll_seconds)
        await uploads.obtain_urls()
        for file, source in zip(files, sources, strict=True):
            crash_point("trainer.upload.before_file")
            await uploads.put(file.path, file.bytes, source)
        crash_point("trainer.upload.before_manifest")
        await uploads.put(MANIFEST_NAME, len(content), content)
    crash_point("trainer.upload.after_manifest")
    return manifest


class _Uploads:
    """Uploads one file after the other, and asks for new URLs when the present ones have expired.

    On a self-hosted Storage they are valid for one minute. An upload that began in time may end after that.
    """

    def __init__(
        self,
        *,
        http: httpx.AsyncClient,
        files: list[ArtifactFile],
        request: Request,
        channel: ChannelClient,
        poll_seconds: float,
    ) -> None:
        self._http = http
        self._files = files
        self._request = request
        self._channel = channel
        self._poll_seconds = poll_seconds
        self._urls: dict[str, str] = {}
        self._received_at = 0.0

    async def obtain_urls(self, *, renew: bool = False) -> None:
        """Ask for the upload URLs and wait until the worker grants them. `renew` withdraws those granted before.

        Raises: as `publish`.
        """
        wait_seconds = self._request.limits.grant_wait_seconds
        try:
            async with asyncio.timeout(wait_seconds):
                sealed = await self._await_grant(renew=renew)
        except TimeoutError:
            raise GrantMissingError(
                f"The worker granted no upload within {wait_seconds:.0f} seconds.",
                "The adapter is kept on the volume; the next attempt publishes it without training again.",
            ) from None
        try:
            self._urls = open_urls(self._request.channel.token, sealed)
        except GrantUnreadableError:
            raise UploadFailedError("The upload grant can't be read with this run's token.") from None
        self._received_at = time.monotonic()

    async def _await_grant(self, *, renew: bool) -> str:
        requested = False
        while True:
            # While the database is unreachable, no grant can arrive either: wait for both up to the same limit.
            try:
                if not requested:
                    await self._channel.request_upload(self._files, renew=renew)
                    requested = True
                    crash_point("trainer.request_upload.after")
                if sealed := await self._channel.upload_grant():
                    return sealed
            except ChannelUnreachableError:
                pass
            await asyncio.sleep(self._poll_seconds)

    async def put(self, path: str, size: int, content: Path | bytes) -> None:
        """Upload one file.

        Raises:
            StorageRefusedError: the storage takes no file of this size or type.
            UploadFailedError: the upload was refused for another reason, or broke off too often.
        """
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_TransientError),
            wait=wait_random_exponential(multiplier=0.5, max=20),
            stop=stop_after_attempt(_ATTEMPTS),
            reraise=True,
        )
        for _ in range(_MAX_URLS_PER_FILE):
            try:
                await retrying(self._put_once, path, size, content)
            except _UrlExpiredError:
                await self.obtain_urls(renew=True)
            else:
                return
        raise UploadFailedError(
            f"The upload URL of {path} had run out {_MAX_URLS_PER_FILE} times before its upload could begin.",
            "Raise UPLOAD_SIGNED_URL_EXPIRATION_TIME of the project's Storage.",
        )

    async def _put_once(self, path: str, size: int, content: Path | bytes) -> None:
        try:
            url = self._urls[path]
        except KeyError:
            raise UploadFailedError(f"The upload grant has no URL for {path}.") from None
        if time.monotonic() - self._received_at >= (lifetime_seconds(url) or float("inf")):
            # Storage itself would refuse the URL only after it has received the whole file.
            raise _UrlExpiredError(f"The upload URL of {path} has run out.")
        headers = {
            "content-type": "application/json" if path.endswith(".json") else "application/octet-stream",
            "content-length": str(size),
            "x-upsert": "true",
        }
        body = _read_chunks(content) if isinstance(content, Path) else content
        try:
            response = await self._http.put(url, content=body, headers=headers)
        except httpx.TransportError as error:
            raise _TransientError(f"The upload of {path} broke off: {why_unreachable(error)}.") from None
        if not response.is_success:
            raise _explain(read_answer(response.status_code, response.content), path, size)


def _explain(answer: Answer, path: str, size: int) -> UploadFailedError | StorageRefusedError:
    """The error for an answer of the storage that is not a success."""
    remedy = "The adapter waits on the volume; it is published without training again once the storage takes it."
    match answer.refusal:
        case Refusal.PASSING:
            return _TransientError(f"The storage answered the upload of {path} with {answer.status}.")
        case Refusal.URL_EXPIRED:
            return _UrlExpiredError(f"The upload URL of {path} has run out.")
        case Refusal.TOO_LARGE:
            return StorageRefusedError(
                f"The storage refused {path}: {size} bytes are more than the bucket or the project takes.",
                remedy,
                too_many_bytes=size,
            )
        case Refusal.TYPE_REFUSED:
            return StorageRefusedError(f"The storage refused {path}: the bucket does not take its type.", remedy)
        case Refusal.MISSING:
            return StorageRefusedError(f"The storage refused {path}: the bucket is not there.", remedy)
    return UploadFailedError(f"The storage refused the upload of {path} ({answer.status}).")


async def _read_chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            yield chunk
