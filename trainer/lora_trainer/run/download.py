"""Downloads what a run needs by signed URLs, and makes sure that it is what the worker checked before the launch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from lora_contract.connections import why_unreachable
from lora_contract.protocol import ADAPTER_FILES, AdapterFile, AdapterRef, DatasetRef, Request
from lora_contract.storage_answers import Refusal, read_streamed_answer
from lora_trainer.errors import (
    DatasetChangedError,
    DatasetUnreachableError,
    HyperparametersInvalidError,
    InitAdapterUnreachableError,
    InitAdapterUnusableError,
    TrainingError,
)
from lora_trainer.run.volume import naming_full_disks

_ATTEMPTS = 5
_MAX_ADAPTER_BYTES = {"adapter_config.json": 1_000_000, "adapter_model.safetensors": 20_000_000_000}
"""The largest files of an earlier adapter: far above what rank 128 takes on the largest base."""


class _PassingError(Exception):
    """The download may succeed when it is retried. `why` is the sentence for the user."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is downloaded, and the exceptions that tell of it."""

    name: str
    """As a subject of a sentence, such as “The dataset”."""
    unreachable: type[TrainingError]
    changed: type[TrainingError]


_DATASET = _Wanted("The dataset", DatasetUnreachableError, DatasetChangedError)
_FINISHED = _Wanted("The adapter", InitAdapterUnreachableError, InitAdapterUnreachableError)
_ADAPTER = _Wanted("The earlier adapter", InitAdapterUnreachableError, InitAdapterUnreachableError)


async def download_dataset(
    dataset: DatasetRef, target: Path, *, transport: httpx.AsyncBaseTransport | None = None
) -> str:
    """Download the dataset into the file `target`. Returns its sha256 as hexadecimal digits.

    Raises:
        DatasetUnreachableError: it can't be downloaded, was deleted, or its signed URL has expired.
        DatasetChangedError: its size or its sha256 differs from the request's.
        DiskFullError: there is no room for it.
    """
    return await _download(_DATASET, dataset.url, target, dataset.bytes, dataset.sha256, transport)


def check_init_adapter(request: Request) -> None:
    """Refuse a request whose worker did not look for the adapter that its job asks for.

    Raises:
        HyperparametersInvalidError: the training would begin with a new adapter without a word.
    """
    if request.hyperparameters.init_adapter is not None and request.init_adapter is None:
        raise HyperparametersInvalidError(
            "The job asks to begin with an earlier adapter, which its worker did not look for.",
            "The worker is older than the trainer; please report it to support.",
        )


async def download_adapter(
    adapter: AdapterRef, folder: Path, *, transport: httpx.AsyncBaseTransport | None = None
) -> None:
    """Download the two files of an earlier adapter into `folder`. No other file of it is ever read.

    Raises:
        InitAdapterUnreachableError: they can't be downloaded, or are not what the request says.
        InitAdapterUnusableError: the request does not name exactly these files, or one is too large.
        DiskFullError: there is no room for them.
    """
    if sorted(file.name for file in adapter.files) != sorted(ADAPTER_FILES):
        raise InitAdapterUnusableError(
            "The earlier adapter does not consist of adapter_config.json and adapter_model.safetensors.",
            "Choose another adapter, or leave init_adapter out.",
        )
    for file in adapter.files:
        if file.bytes > _MAX_ADAPTER_BYTES[file.name]:
            raise InitAdapterUnusableError(
                f"The earlier adapter's file {file.name} has {file.bytes:,} bytes, more than an adapter can have.",
                "Choose another adapter, or leave init_adapter out.",
            )
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240 one call on a local folder
    for file in adapter.files:
        await _download(_ADAPTER, file.url, folder / file.name, file.bytes, file.sha256, transport)


async def download_files(
    files: Sequence[AdapterFile], folder: Path, *, transport: httpx.AsyncBaseTransport | None = None
) -> None:
    """Download files of a finished adapter into `folder`, whose names have no folders.

    Raises:
        InitAdapterUnreachableError: one can't be downloaded, or is not what the request says.
        DiskFullError: there is no room for them.
    """
    for file in files:
        await _download(_FINISHED, file.url, folder / file.name, file.bytes, file.sha256, transport)


async def _download(
    wanted: _Wanted,
    url: str,
    target: Path,
    size: int | None,
    sha256: str | None,
    transport: httpx.AsyncBaseTransport | None,
) -> str:
    async with httpx.AsyncClient(timeout=httpx.Timeout(60, connect=15), transport=transport) as http:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_PassingError),
            wait=wait_random_exponential(multiplier=0.5, max=10),
            stop=stop_after_attempt(_ATTEMPTS),
            reraise=True,
        )
        try:
            with naming_full_disks(target.parent):
                received: tuple[int, str] = await retrying(_stream, http, wanted, url, target, size)
        except _PassingError as error:
            raise wanted.unreachable(error.why) from None
    found_size, found_sha256 = received
    if size is not None and found_size != size:
        has = f"more than {size}" if found_size > size else f"{found_size}"  # the download ended there
        raise wanted.changed(
            f"{wanted.name} has {has} bytes, but had {size} when it was checked.",
            "It was replaced meanwhile; the next attempt checks the new file.",
        )
    if sha256 is not None and found_sha256 != sha256:
        raise wanted.changed(
            f"{wanted.name}'s content is not what was checked (its sha256 differs).",
            "It was replaced meanwhile; the next attempt checks the new file.",
        )
    return found_sha256


async def _stream(
    http: httpx.AsyncClient, wanted: _Wanted, url: str, target: Path, most_bytes: int | None
) -> tuple[int, str]:
    """Download a file, and end early where it is larger than `most_bytes`. Returns its size and sha256."""
    digest, size = hashlib.sha256(), 0
    try:
        async with http.stream("GET", url) as response:
            await _check(response, wanted)
            with target.open("wb") as file:
                async for chunk in response.aiter_bytes(1 << 20):
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                    if most_bytes is not None and size > most_bytes:
                        break
    except httpx.TransportError as error:
        raise _PassingError(f"{wanted.name}'s download broke off: {why_unreachable(error)}.") from None
    except httpx.InvalidURL:
        raise wanted.unreachable(f"{wanted.name}'s URL is not a URL.") from None
    return size, digest.hexdigest()


async def _check(response: httpx.Response, wanted: _Wanted) -> None:
    if response.status_code == 200:
        return
    answer = await read_streamed_answer(response)
    name = wanted.name
    match answer.refusal:
        case Refusal.PASSING:
            raise _PassingError(f"{name}'s storage answered {answer.status}.")
        case Refusal.URL_EXPIRED:
            raise wanted.unreachable(f"{name}'s signed URL has expired.", "The next attempt signs a new one.")
        case Refusal.URL_REFUSED | Refusal.KEY_REFUSED:
            raise wanted.unreachable(
                f"{name}'s signed URL was refused with status {answer.status}.",
                "The next attempt signs a new one.",
            )
        case Refusal.MISSING:
            raise wanted.unreachable(f"{name}'s file is not in the storage any more; it was deleted or moved.")
    raise wanted.unreachable(f"{name} can't be downloaded: its storage answered {answer.status}.")
