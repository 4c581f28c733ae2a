"""No run is launched while the storage would refuse its adapter, and a suitable bucket is checked once."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from uuid import uuid4

import pytest

from lora_worker.errors import ServiceRefusedError, ServiceUnavailableError
from lora_worker.storage.buckets import ArtifactsBucket
from tests.unit.worker.doctor.test_doctor import GOOD

JOB, OTHER = uuid4(), uuid4()


class Shelves:
    """A storage that describes its buckets, or is down."""

    def __init__(self, *buckets: dict[str, Any]) -> None:
        self.found: list[dict[str, Any]] | Exception = list(buckets)
        self.looks = 0
        self.takes: int | None = 10**12
        """The project's limit in bytes; None if it can't be found out."""

    async def takes_size(self, bucket: str, byte_count: int) -> bool | None:
        return None if self.takes is None else byte_count <= self.takes

    async def buckets(self) -> list[dict[str, Any]]:
        self.looks += 1
        await asyncio.sleep(0)
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def bucket_of(shelves: Shelves) -> ArtifactsBucket:
    return ArtifactsBucket(cast(Any, shelves), "lora-models")


async def test_suitable_bucket_is_checked_once_for_many_launches() -> None:
    shelves = Shelves(GOOD)
    bucket = bucket_of(shelves)
    await asyncio.gather(*(bucket.require(JOB) for _ in range(5)))
    await bucket.require(JOB)
    assert shelves.looks == 1


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([], "the bucket lora-models is missing: run `lora-worker migrate`"),
        ([GOOD | {"name": "other"}], "is missing"),
        ([GOOD | {"file_size_limit": 50 * 1024**2}], "takes files up to 50 MB: raise its limit"),
        ([GOOD | {"allowed_mime_types": ["application/json"]}], "does not take application/octet-stream: add"),
    ],
    ids=str,
)
async def test_unsuitable_bucket_is_refused_with_advice_and_rechecked(found: list[dict[str, Any]], words: str) -> None:
    shelves = Shelves(*found)
    bucket = bucket_of(shelves)
    with pytest.raises(ServiceRefusedError, match=words):
        await bucket.require(JOB)
    shelves.found = [GOOD]
    await bucket.require(JOB)


async def test_public_bucket_does_not_block_launches() -> None:
    await bucket_of(Shelves(GOOD | {"public": True})).require(JOB)


async def test_bucket_is_checked_again_after_a_storage_outage() -> None:
    shelves = Shelves(GOOD)
    shelves.found = ServiceUnavailableError("Supabase Storage", "is not available")
    bucket = bucket_of(shelves)
    with pytest.raises(ServiceUnavailableError):
        await bucket.require(JOB)
    shelves.found = [GOOD]
    await bucket.require(JOB)


async def test_too_small_project_limit_is_named_before_a_launch() -> None:
    shelves = Shelves(GOOD)
    shelves.takes = 50 * 1024**2
    with pytest.raises(ServiceRefusedError, match="the project takes no file of 1024 MB"):
        await bucket_of(shelves).require(JOB)
    shelves.takes = None
    await bucket_of(shelves).require(JOB)


async def test_refused_adapter_size_holds_only_its_own_job() -> None:
    shelves = Shelves(GOOD)
    shelves.takes = 2 * 1024**3
    bucket = bucket_of(shelves)
    await bucket.require(JOB)
    bucket.note_refusal(JOB, 3 * 1024**3)
    await bucket.require(OTHER)
    for _ in range(2):
        with pytest.raises(ServiceRefusedError, match="no file of 3072 MB"):
            await bucket.require(JOB)
    shelves.takes = 4 * 1024**3
    await bucket.require(JOB)


async def test_refused_upload_triggers_a_new_bucket_check() -> None:
    shelves = Shelves(GOOD)
    bucket = bucket_of(shelves)
    await bucket.require(JOB)
    shelves.found = [GOOD | {"allowed_mime_types": ["application/json"]}]
    bucket.note_refusal(JOB, None)
    with pytest.raises(ServiceRefusedError, match="does not take"):
        await bucket.require(JOB)
