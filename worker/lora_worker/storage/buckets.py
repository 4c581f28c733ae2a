"""Checks whether the buckets can store adapters: for `lora-worker doctor`, and before the worker pays for a GPU."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from lora_worker.errors import ServiceRefusedError
from lora_worker.storage.objects import Storage

LEAST_MODEL_BYTES = 1024**3
"""The file size that a bucket for adapters must allow. The adapter of a 7B model with rank 128 has 336 million
parameters, which is 0.7 GB in bf16, and it is one file."""

OWN_BUCKETS = ("lora-models", "lora-datasets", "training-files")
"""The buckets that `lora-worker migrate` creates."""

_ARTIFACT_TYPES = ("application/json", "application/octet-stream")
"""The MIME types of the files that the trainer uploads."""


_MOST_REFUSALS = 1000
"""For how many jobs the size of a refused file is remembered."""


@dataclass(frozen=True, slots=True)
class BucketFault:
    """What is wrong with a bucket, and what the operator can do about it."""

    finding: str
    remedy: str


def publicity_faults(bucket: Mapping[str, Any]) -> list[BucketFault]:
    """Check that a bucket, as described by Storage, is not public."""
    if not bucket.get("public"):
        return []
    text = f"the bucket {bucket['name']} is public"
    return [BucketFault(text, "make it private: whoever knows a path reads the file")]


def artifact_faults(bucket: Mapping[str, Any]) -> list[BucketFault]:
    """Check that a bucket, as described by Storage, allows the sizes and MIME types of an adapter's files."""
    name, limit = bucket["name"], bucket.get("file_size_limit")
    faults: list[BucketFault] = []
    if limit is not None and int(limit) < LEAST_MODEL_BYTES:
        text = f"the bucket {name} takes files up to {int(limit) / 1024**2:.0f} MB"
        faults.append(BucketFault(text, "raise its limit, and the project's, to 1 GB or more: an adapter is one file"))
    missing = [kind for kind in _ARTIFACT_TYPES if not _takes(bucket.get("allowed_mime_types"), kind)]
    if missing:
        text = f"the bucket {name} does not take {' and '.join(missing)}"
        faults.append(BucketFault(text, "add to its allowed MIME types what is missing, or allow all"))
    return faults


def missing_bucket(name: str) -> BucketFault:
    """Make the fault for a bucket that does not exist."""
    own = name in OWN_BUCKETS
    remedy = "run `lora-worker migrate`" if own else "make it, private, or set LORA_WORKER_ARTIFACTS_BUCKET"
    return BucketFault(f"the bucket {name} is missing", remedy)


def _takes(allowed: Sequence[str] | None, kind: str) -> bool:
    # Storage allows every type if the list is empty; else an entry must be this type or `family/*`. It knows no `*/*`.
    family = kind.split("/")[0]
    return not allowed or any(entry in {kind, f"{family}/*"} for entry in allowed)


async def project_fault(storage: Storage, name: str, byte_count: int) -> BucketFault | None:
    """Check that the project's own size limit, which acts beside the bucket's, allows a file of `byte_count` bytes.

    Returns None if it does, and if this version of Storage can't tell.

    Raises:
        ServiceUnavailableError: the storage did not answer.
    """
    if await storage.takes_size(name, byte_count) is not False:
        return None
    return BucketFault(
        f"the project takes no file of {byte_count / 1024**2:.0f} MB, whatever its buckets say",
        "raise its upload limit: in the project's Storage settings, or FILE_SIZE_LIMIT of a self-hosted Storage",
    )


class ArtifactsBucket:
    """The bucket for adapters. No run is launched before it was found able to store one.

    The check is made once, and again after the trainer reports that Storage refused an adapter.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._is_fit = False
        self._looking = asyncio.Lock()
        self._refused_bytes: dict[UUID, int] = {}

    def note_refusal(self, job_id: UUID, byte_count: int | None) -> None:
        """Remember that Storage refused a job's adapter; `byte_count` is its size if that was the reason.

        The size comes from the job's container, which may report anything. So it delays only retries of the same job.
        """
        self._is_fit = False
        if byte_count is not None:
            while len(self._refused_bytes) >= _MOST_REFUSALS:
                del self._refused_bytes[next(iter(self._refused_bytes))]
            self._refused_bytes[job_id] = byte_count

    async def require(self, job_id: UUID) -> None:
        """Check that the bucket can store an adapter, and this job's adapter if that was refused before.

        Raises:
            ServiceRefusedError: the bucket is missing or would refuse the adapter; the text is for the operator.
            ServiceUnavailableError: the storage did not answer.
        """
        # Launches that start at the same time wait here, and share the result of one check.
        async with self._looking:
            if not self._is_fit:
                _refuse_for(await self._faults())
                self._is_fit = True
        refused = self._refused_bytes.get(job_id)
        if refused is not None:
            fault = await project_fault(self._storage, self._name, refused)
            _refuse_for([fault] if fault else [])
            self._refused_bytes.pop(job_id, None)

    async def _faults(self) -> list[BucketFault]:
        found = {bucket["name"]: bucket for bucket in await self._storage.buckets()}
        if self._name not in found:
            return [missing_bucket(self._name)]
        if faults := artifact_faults(found[self._name]):
            return faults
        fault = await project_fault(self._storage, self._name, LEAST_MODEL_BYTES)
        return [fault] if fault else []


def _refuse_for(faults: Sequence[BucketFault]) -> None:
    if faults:
        text = "; ".join(f"{fault.finding}: {fault.remedy}" for fault in faults)
        raise ServiceRefusedError("Supabase Storage", f"no adapter could be stored: {text}", status=409)
