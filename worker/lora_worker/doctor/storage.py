"""Checks the buckets: that they exist, are private, and take an adapter's files for long enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_contract.grants import lifetime_seconds
from lora_worker.doctor.check import Check
from lora_worker.services import Services
from lora_worker.storage.buckets import (
    LEAST_MODEL_BYTES,
    OWN_BUCKETS,
    artifact_faults,
    missing_bucket,
    project_fault,
    publicity_faults,
)
from lora_worker.storage.objects import PROBE_NAME

_LEAST_URL_SECONDS = 900.0
"""How long upload URLs must be valid: long enough to upload the files of an adapter one after the other. A hosted
project gives 7,200 seconds."""


async def check_storage(services: Services) -> list[Check]:
    """Check each bucket that the worker uses, and that nobody lists its files with the publishable key."""
    found = {bucket["name"]: bucket for bucket in await services.storage.buckets()}
    public_key = services.settings.supabase_publishable_key.get_secret_value()
    artifacts_bucket = services.settings.artifacts_bucket
    checks = []
    for name in dict.fromkeys((artifacts_bucket, *OWN_BUCKETS[1:])):
        if name not in found:
            fault = missing_bucket(name)
            checks.append(Check("storage", False, fault.finding, fault.remedy))
            continue
        checks += examine_bucket(found[name], holds_artifacts=name == artifacts_bucket)
        if name == artifacts_bucket:
            checks += await _check_uploads(services, found[name])
        if await services.storage.opens_to(name, public_key):
            text = f"the publishable key lists the files of {name}"
            remedy = "drop the policies on storage.objects that let `anon` or `public` read this bucket"
            checks.append(Check("storage", False, text, remedy))
    return checks


def examine_bucket(bucket: Mapping[str, Any], *, holds_artifacts: bool) -> list[Check]:
    """Check that a bucket, as described by Storage, is private and can store the files that are uploaded there."""
    faults = publicity_faults(bucket) + (artifact_faults(bucket) if holds_artifacts else [])
    if faults:
        return [Check("storage", False, fault.finding, fault.remedy) for fault in faults]
    limit = bucket.get("file_size_limit")
    size = "of any size" if limit is None else f"up to {int(limit) / 1024**2:.0f} MB"
    return [Check("storage", True, f"the bucket {bucket['name']} is private and takes files {size}")]


async def _check_uploads(services: Services, bucket: Mapping[str, Any]) -> list[Check]:
    """Check what the bucket's description does not show: the project's size limit, and how long upload URLs live."""
    checks = []
    # If the bucket itself would refuse the file, the answer says nothing about the project's limit.
    can_probe = not artifact_faults(bucket)
    if can_probe and (fault := await project_fault(services.storage, bucket["name"], LEAST_MODEL_BYTES)):
        checks.append(Check("storage", False, fault.finding, fault.remedy))
    seconds = lifetime_seconds(await services.storage.sign_upload(bucket["name"], PROBE_NAME))
    return checks + ([] if seconds is None else [examine_lifetime(seconds)])


def examine_lifetime(seconds: float) -> Check:
    """Check that upload URLs are valid for long enough to upload the files of an adapter."""
    if seconds >= _LEAST_URL_SECONDS:
        return Check("storage", True, f"upload URLs live {seconds:.0f} s")
    text = f"upload URLs live {seconds:.0f} s: a trainer waits for new ones in the middle of its files"
    return Check("storage", False, text, "set UPLOAD_SIGNED_URL_EXPIRATION_TIME of the project's Storage to 7200")
