"""Put the artifact into the bucket: ask for places, wait for the grant, PUT each file, manifest last.

The trainer holds no key of the storage. The worker signs one upload URL for each file that
`request_upload` names; `manifest.json`, written last, says that the artifact is whole.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from trainer.channel import ChannelClient
from trainer.crashpoints import reach
from trainer.errors import ChannelUnreachableError, GrantMissingError, UploadFailedError
from trainer.grants import GrantUnreadableError, open_urls
from trainer.protocol import MANIFEST_NAME, ArtifactFile, Manifest, Request
from trainer.task import Outcome

_ATTEMPTS = 5
_CHUNK_BYTES = 1 << 20


class _PassingFaultError(UploadFailedError):
    """It may work later."""


def describe_files(artifact: Path) -> list[ArtifactFile]:
    """Every file under `artifact`, with size and sha256, in order of path."""
    return [
        ArtifactFile(
            name=path.name,
            path=path.relative_to(artifact).as_posix(),
            bytes=path.stat().st_size,
            sha256=_sha256(path),
        )
        for path in sorted(artifact.rglob("*"))
        if path.is_file()
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def publish(
    artifact: Path,
    outcome: Outcome,
    request: Request,
    channel: ChannelClient,
    *,
    grant_poll_seconds: float,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Manifest:
    """Publish the artifact's files; the manifest that now lies beside them.

    Safe to repeat: the same files go to the same places.

    Raises:
        GrantMissingError: no grant within `request.limits.grant_wait_seconds`.
        UploadFailedError: an upload was refused, or broke off too often.
        SupersededError: another execution owns the run.
    """
    files = await asyncio.to_thread(describe_files, artifact)
    urls = await _obtain_urls(files, request, channel, grant_poll_seconds)
    manifest = Manifest(
        job_id=request.job_id,
        run_id=request.run_id,
        files=files,
        metrics=outcome.metrics,
        summary=outcome.summary,
        points=outcome.points,
    )
    async with httpx.AsyncClient(timeout=httpx.Timeout(300, connect=15), transport=transport) as http:
        for file in files:
            reach("trainer.upload.before_file")
            await _put(http, _url_of(urls, file.path), file.path, file.bytes, artifact / file.path)
        reach("trainer.upload.before_manifest")
        content = manifest.model_dump_json(exclude_none=True).encode()
        await _put(http, _url_of(urls, MANIFEST_NAME), MANIFEST_NAME, len(content), content)
    reach("trainer.upload.after_manifest")
    return manifest


async def _obtain_urls(
    files: list[ArtifactFile], request: Request, channel: ChannelClient, poll_seconds: float
) -> dict[str, str]:
    wait_seconds = request.limits.grant_wait_seconds
    try:
        async with asyncio.timeout(wait_seconds):
            sealed = await _await_grant(files, channel, poll_seconds)
    except TimeoutError:
        raise GrantMissingError(
            f"The worker granted no upload within {wait_seconds:.0f} seconds.",
            "The adapter is kept on the volume; the next attempt publishes it without training again.",
        ) from None
    try:
        return open_urls(request.channel.token, sealed)
    except GrantUnreadableError:
        raise UploadFailedError("The upload grant can't be read with this run's token.") from None


async def _await_grant(files: list[ArtifactFile], channel: ChannelClient, poll_seconds: float) -> str:
    requested = False
    while True:
        # The channel being away is like the worker being away: wait for it as long as for a grant.
        try:
            if not requested:
                await channel.request_upload(files)
                requested = True
                reach("trainer.request_upload.after")
            if sealed := await channel.upload_grant():
                return sealed
        except ChannelUnreachableError:
            pass
        await asyncio.sleep(poll_seconds)


def _url_of(urls: dict[str, str], path: str) -> str:
    try:
        return urls[path]
    except KeyError:
        raise UploadFailedError(f"The upload grant has no place for {path}.") from None


async def _put(http: httpx.AsyncClient, url: str, path: str, size: int, content: Path | bytes) -> None:
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(_PassingFaultError),
        wait=wait_random_exponential(multiplier=0.5, max=20),
        stop=stop_after_attempt(_ATTEMPTS),
        reraise=True,
    )
    await retrying(_put_once, http, url, path, size, content)


async def _put_once(http: httpx.AsyncClient, url: str, path: str, size: int, content: Path | bytes) -> None:
    headers = {
        "content-type": "application/json" if path.endswith(".json") else "application/octet-stream",
        "content-length": str(size),
        "x-upsert": "true",
    }
    body = _read_chunks(content) if isinstance(content, Path) else content
    try:
        response = await http.put(url, content=body, headers=headers)
    except httpx.TransportError as error:
        raise _PassingFaultError(f"The upload of {path} broke off ({type(error).__name__}).") from None
    if response.status_code in {408, 429} or response.status_code >= 500:
        raise _PassingFaultError(f"The storage answered the upload of {path} with {response.status_code}.")
    if response.status_code == 413:
        raise UploadFailedError(
            f"The storage refused {path}: {size} bytes are more than the bucket takes.",
            "Raise the file size limit of the bucket and of the project, or lower the LoRA rank.",
        )
    if response.status_code >= 400:
        raise UploadFailedError(f"The storage refused the upload of {path} ({response.status_code}).")


async def _read_chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            yield chunk
