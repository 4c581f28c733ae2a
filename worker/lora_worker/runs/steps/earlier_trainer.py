"""Fetches the files of an earlier trainer, which leaves them at addresses of its own choice.

An address that a container names may be an attacker's. So files are only fetched where the operator has switched this
on: from public hosts by https, in bounded number, size and time, and for few runs at once.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NoReturn

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from lora_contract.object_names import storable
from lora_contract.protocol import ArtifactFile, FinalMetrics, Manifest, Summary
from lora_worker.errors import ArtifactError, ServiceRefusedError
from lora_worker.runs.outcomes.results import LegacyResult
from lora_worker.storage.manifests import RESERVED_NAMES
from lora_worker.storage.public_web import ForbiddenAddressError, fetch, public_client
from lora_worker.storage.publication import ArtifactStore, keep_manifest

_COPY_ATTEMPTS = 3
_MAX_FILES = 50
_MAX_NAME_CHARACTERS = 200
_OPERATORS_STATUSES = frozenset({401, 403, 404, 413, 415})
"""With these statuses the storage refuses the key, the bucket, the size or the type, which its operator must mend."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that is fetched for one run."""

    max_bytes: int = 5 * 1024**3
    """Of all files together."""
    max_seconds: float = 1800.0
    trusted_hosts: tuple[str, ...] = ()
    """`host:port` of hosts that may have a private address and answer by http."""


async def copy_files(
    legacy: LegacyResult, store: ArtifactStore, bounds: Bounds, *, run_id: str, job_id: str
) -> Manifest:
    """Copy the files into the run's folder and write the manifest last, so that all of them count or none.

    Raises:
        ArtifactError: a name or an address is not one to take, a file can't be had, or they are too much.
        ServiceRefusedError: the storage does not take them.
        ServiceUnavailableError: the storage did not answer.
        LeaseLostError: the run is another worker's now.
    """
    sources = _plan(legacy.files)
    try:
        async with asyncio.timeout(bounds.max_seconds), public_client(bounds.trusted_hosts) as http:
            copier = _Copier(store, http, bounds.max_bytes)
            files = [await copier.copy(path, url) for path, url in sources.items()]
    except TimeoutError:
        raise ArtifactError(
            f"The trainer's files could not be fetched within {bounds.max_seconds:.0f} seconds."
        ) from None
    manifest = Manifest(job_id=job_id, run_id=run_id, files=files, **_described(legacy))
    await keep_manifest(store, manifest, manifest.model_dump_json().encode())
    return manifest


def _described(legacy: LegacyResult) -> dict[str, FinalMetrics | Summary]:
    loss, steps = legacy.metadata.get("final_loss"), legacy.metadata.get("steps_completed")
    base = legacy.metadata.get("base_model")
    return {
        "metrics": FinalMetrics(final_training_loss=loss if isinstance(loss, int | float) else None),
        "summary": Summary(
            base_model=base[:_MAX_NAME_CHARACTERS] if isinstance(base, str) and base else None,
            total_steps=steps if isinstance(steps, int) and 0 < steps <= 10**9 else None,
        ),
    }


def _plan(files: dict[str, str]) -> dict[str, str]:
    """The URL for each path under which a file is kept.

    Raises:
        ArtifactError: too many files, or a name that is no file's.
    """
    if len(files) > _MAX_FILES:
        raise ArtifactError(f"The trainer named {len(files)} files; at most {_MAX_FILES} are taken.")
    planned: dict[str, str] = {}
    for name, url in sorted(files.items()):
        path = storable(PurePosixPath(name).name) if len(name) <= _MAX_NAME_CHARACTERS else ""
        if path in {"", ".", "..", *RESERVED_NAMES} or len(path) > _MAX_NAME_CHARACTERS:
            raise ArtifactError("The trainer named a file that can't be stored under its name.")
        if path in planned:
            raise ArtifactError(f"The trainer named two files {path}.")
        planned[path] = url
    return planned


class _SourceBrokeOffError(Exception):
    """The trainer's address stopped answering in the middle; its text is a sentence."""


def _give_up(state: RetryCallState) -> NoReturn:
    raise ArtifactError(str(state.outcome.exception() if state.outcome else "")) from None


class _Copier:
    """Streams files from the trainer's addresses into the storage, within a number of bytes for all of them."""

    def __init__(self, store: ArtifactStore, http: httpx.AsyncClient, max_bytes: int) -> None:
        self._store = store
        self._http = http
        self._bytes_left = max_bytes

    async def copy(self, path: str, url: str) -> ArtifactFile:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_SourceBrokeOffError),
            stop=stop_after_attempt(_COPY_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.3, max=3),
            # Without an end to its tries it would hold the run: the job would neither end nor be tried again.
            retry_error_callback=_give_up,
        )
        copied: ArtifactFile = await retrying(self._copy_once, path, url)
        return copied

    async def _copy_once(self, path: str, url: str) -> ArtifactFile:
        digest, size = hashlib.sha256(), 0

        async def read(source: httpx.Response) -> AsyncIterator[bytes]:
            nonlocal size
            try:
                async for chunk in source.aiter_raw(1 << 20):
                    # The bytes of all tries count, so that a source that keeps breaking off has a bound, too.
                    self._bytes_left -= len(chunk)
                    if self._bytes_left < 0:
                        raise ArtifactError("The trainer's files are larger than an adapter may be.")
                    digest.update(chunk)
                    size += len(chunk)
                    yield chunk
            except httpx.HTTPError:
                raise _SourceBrokeOffError(f"{path} broke off while it was fetched from the trainer.") from None

        try:
            async with fetch(self._http, url) as source:
                if source.status_code != 200:
                    raise _SourceBrokeOffError(f"{path} could not be fetched from the trainer ({source.status_code}).")
                self._store.require_lease()
                target = self._store.paths.final(path)
                await self._store.storage.write_stream(self._store.bucket, target, read(source))
        except ForbiddenAddressError as error:
            raise ArtifactError(f"The trainer's address of {path} {error}.") from None
        except httpx.HTTPError:
            raise _SourceBrokeOffError(f"{path} could not be fetched from the trainer.") from None
        except ServiceRefusedError as error:
            if error.status in _OPERATORS_STATUSES:
                raise
            # Another try would be refused in the same way.
            raise ArtifactError(f"The storage refused {path} ({error.status}).") from None
        return ArtifactFile(name=path, path=path, bytes=size, sha256=digest.hexdigest())
