"""Downloads the dataset, and makes sure that it is the file that the worker checked before the launch."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from lora_contract.connections import why_unreachable
from lora_contract.protocol import DatasetRef
from lora_contract.storage_answers import Refusal, read_streamed_answer
from lora_trainer.errors import DatasetChangedError, DatasetUnreachableError
from lora_trainer.run.volume import naming_full_disks

_ATTEMPTS = 5


class _TransientError(DatasetUnreachableError):
    """The download may succeed when it is retried."""


async def download_dataset(
    dataset: DatasetRef, target: Path, *, transport: httpx.AsyncBaseTransport | None = None
) -> str:
    """Download the dataset into the file `target`. Returns its sha256 as hexadecimal digits.

    Raises:
        DatasetUnreachableError: it can't be downloaded, was deleted, or its signed URL has expired.
        DatasetChangedError: its size or its sha256 differs from the request's.
        DiskFullError: there is no room for it.
    """
    async with httpx.AsyncClient(timeout=httpx.Timeout(60, connect=15), transport=transport) as http:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_TransientError),
            wait=wait_random_exponential(multiplier=0.5, max=10),
            stop=stop_after_attempt(_ATTEMPTS),
            reraise=True,
        )
        with naming_full_disks(target.parent):
            received: tuple[int, str] = await retrying(_stream, http, dataset.url, target)
    size, sha256 = received
    if dataset.bytes is not None and size != dataset.bytes:
        raise DatasetChangedError(
            f"The dataset has {size} bytes, but had {dataset.bytes} when it was checked.",
            "It was replaced meanwhile; the next attempt checks the new file.",
        )
    if dataset.sha256 is not None and sha256 != dataset.sha256:
        raise DatasetChangedError(
            "The dataset's content is not what was checked (its sha256 differs).",
            "It was replaced meanwhile; the next attempt checks the new file.",
        )
    return sha256


async def _stream(http: httpx.AsyncClient, url: str, target: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    try:
        async with http.stream("GET", url) as response:
            await _check(response)
            with target.open("wb") as file:
                async for chunk in response.aiter_bytes(1 << 20):
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
    except httpx.TransportError as error:
        raise _TransientError(f"The dataset's download broke off: {why_unreachable(error)}.") from None
    except httpx.InvalidURL:
        raise DatasetUnreachableError("The dataset's URL is not a URL.") from None
    return size, digest.hexdigest()


async def _check(response: httpx.Response) -> None:
    if response.status_code == 200:
        return
    answer = await read_streamed_answer(response)
    match answer.refusal:
        case Refusal.PASSING:
            raise _TransientError(f"The dataset's storage answered {answer.status}.")
        case Refusal.URL_EXPIRED:
            raise DatasetUnreachableError("The dataset's signed URL has expired.", "The next attempt signs a new one.")
        case Refusal.URL_REFUSED | Refusal.KEY_REFUSED:
            raise DatasetUnreachableError(
                f"The dataset's signed URL was refused with status {answer.status}.",
                "The next attempt signs a new one.",
            )
        case Refusal.MISSING:
            raise DatasetUnreachableError("The dataset's file is not in the storage any more; it was deleted or moved.")
    raise DatasetUnreachableError(f"The dataset can't be downloaded: its storage answered {answer.status}.")
