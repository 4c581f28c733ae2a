"""What the buckets must be like, for the doctor and before a GPU is paid for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from worker.errors import ServiceRefusedError
from worker.storage import Storage

LEAST_MODEL_BYTES = 1024**3
"""At rank 128 the adapter of a 7B model has 336 million parameters: 0.7 GB in bf16, in one file."""

OWN_BUCKETS = ("lora-models", "lora-datasets", "training-files")
"""What `lora-worker migrate` makes."""

_ARTIFACT_TYPES = ("application/json", "application/octet-stream")
"""What the trainer uploads."""


@dataclass(frozen=True, slots=True)
class BucketFault:
    """What is wrong with a bucket, and what to do."""

    finding: str
    remedy: str


def publicity_faults(bucket: Mapping[str, Any]) -> list[BucketFault]:
    """Whether anybody can read the bucket, as Storage describes it."""
    if not bucket.get("public"):
        return []
    text = f"the bucket {bucket['name']} is public"
    return [BucketFault(text, "make it private: whoever knows a path reads the file")]


def artifact_faults(bucket: Mapping[str, Any]) -> list[BucketFault]:
    """Why the bucket, as Storage describes it, would refuse what the trainer uploads."""
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
    """The fault of a bucket that is not there."""
    own = name in OWN_BUCKETS
    remedy = "run `lora-worker migrate`" if own else "make it, private, or set LORA_WORKER_ARTIFACTS_BUCKET"
    return BucketFault(f"the bucket {name} is missing", remedy)


def _takes(allowed: Sequence[str] | None, kind: str) -> bool:
    # Storage takes everything where the list is empty, and knows `application/*`.
    return not allowed or any(fnmatchcase(kind, pattern) for pattern in allowed)


class ArtifactsBucket:
    """The bucket of the adapters, looked at until it was found fit once: no GPU is paid for before."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._is_fit = False
        self._looking = asyncio.Lock()

    async def require(self) -> None:
        """See that it takes an adapter.

        Raises:
            ServiceRefusedError: it is missing or would refuse one; says what the operator is to do.
            ServiceUnavailableError: the storage did not answer.
        """
        # One look is enough for all launches of a cycle.
        async with self._looking:
            if self._is_fit:
                return
            found = {bucket["name"]: bucket for bucket in await self._storage.buckets()}
            faults = artifact_faults(found[self._name]) if self._name in found else [missing_bucket(self._name)]
            if faults:
                text = "; ".join(f"{fault.finding}: {fault.remedy}" for fault in faults)
                raise ServiceRefusedError("Supabase Storage", f"no adapter could be stored: {text}", status=409)
            self._is_fit = True
