"""A dataset as a file on this machine: read with the worker's own reader before anything is stored."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_contract.hyperparameters import Hyperparameters
from lora_conversations.errors import DatasetUnusableError
from lora_conversations.preferences import Sample
from lora_conversations.survey import Survey, Surveyor
from lora_worker.datasets.preflight import surveyor_for
from lora_worker.errors import ArgumentError

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LocalDataset:
    """A usable dataset, and what was counted in it."""

    path: Path
    survey: Survey

    @property
    def content_type(self) -> str:
        """Return the MIME type under which the application stores such a file."""
        return "application/json" if self.path.suffix.lower() == ".json" else "application/x-jsonlines"


def read_dataset(path: Path, chosen: Hyperparameters) -> LocalDataset:
    """Read a file from its first line to its last, with constant memory, as the worker does before a launch.

    Raises:
        ArgumentError: the file can't be read, or can't be trained on; the text says which line and what to do.
    """
    surveyor = surveyor_for(chosen)
    try:
        for _ in read_samples(path, surveyor):
            pass
        survey = surveyor.result()
        survey.check(chosen.max_bad_line_share)
    except DatasetUnusableError as error:
        raise ArgumentError(f"{path.name} can't be trained on, nothing is stored: {error.sentence()}") from None
    return LocalDataset(path, survey)


def read_samples(path: Path, surveyor: Surveyor) -> Iterator[Sample]:
    """Yield what the surveyor finds in a file, of which one chunk is in memory at a time.

    Raises:
        ArgumentError: the file can't be read.
        DatasetUnusableError: it is no dataset.
    """
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield from surveyor.feed(chunk)
    except OSError as error:
        raise ArgumentError(f"FILE: {path} can't be read ({error.strerror or type(error).__name__})") from None
    yield from surveyor.close()


async def upload_chunks(dataset: LocalDataset) -> AsyncIterator[bytes]:
    """Yield the file again, and make sure at its end that it is still the one that was read.

    Raises:
        ArgumentError: the file has changed since.
    """
    digest = hashlib.sha256()
    with dataset.path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            digest.update(chunk)
            yield chunk
    if digest.hexdigest() != dataset.survey.sha256:
        raise ArgumentError(f"{dataset.path.name} was changed while it was read: try again when nothing writes to it")
