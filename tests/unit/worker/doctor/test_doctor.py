"""The doctor checks whether a bucket is private and accepts an adapter."""

from __future__ import annotations

from typing import Any

import pytest

from lora_worker.database.functions import USER_FUNCTIONS
from lora_worker.doctor.project import examine_callers
from lora_worker.doctor.storage import examine_bucket, examine_lifetime

GB = 1024**3
GOOD = {
    "name": "lora-models",
    "public": False,
    "file_size_limit": 5 * GB,
    "allowed_mime_types": ["application/octet-stream", "application/x-tar", "application/gzip", "application/json"],
}


@pytest.mark.parametrize(
    "bucket",
    [
        GOOD,
        GOOD | {"file_size_limit": None, "allowed_mime_types": None},
        GOOD | {"allowed_mime_types": []},
        GOOD | {"allowed_mime_types": ["application/*"]},
        GOOD | {"file_size_limit": GB},
    ],
)
def test_bucket_that_accepts_adapters_passes(bucket: dict[str, Any]) -> None:
    (check,) = examine_bucket(bucket, holds_artifacts=True)
    assert check.ok
    assert check.remedy == ""


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"public": True}, "the bucket lora-models is public"),
        ({"file_size_limit": 50 * 1024**2}, "the bucket lora-models takes files up to 50 MB"),
        (
            {"allowed_mime_types": ["application/gzip", "application/json"]},
            "the bucket lora-models does not take application/octet-stream",
        ),
        (
            {"allowed_mime_types": ["image/*"]},
            "the bucket lora-models does not take application/json and application/octet-stream",
        ),
    ],
)
def test_each_fault_of_the_adapters_bucket_has_a_remedy(change: dict[str, Any], finding: str) -> None:
    (check,) = examine_bucket(GOOD | change, holds_artifacts=True)
    assert not check.ok
    assert check.finding == finding
    assert check.remedy


@pytest.mark.parametrize("rule", ["*/*", "*", "application/j*", "application/?son", "application/octet*"])
def test_unknown_mime_rule_counts_as_refusing_everything(rule: str) -> None:
    (check,) = examine_bucket(GOOD | {"allowed_mime_types": [rule]}, holds_artifacts=True)
    assert check.finding == "the bucket lora-models does not take application/json and application/octet-stream"


def test_short_lived_upload_urls_are_reported_with_the_setting() -> None:
    assert examine_lifetime(7200).ok
    short = examine_lifetime(60)
    assert not short.ok
    assert "60 s" in short.finding
    assert "UPLOAD_SIGNED_URL_EXPIRATION_TIME" in short.remedy


def test_every_fault_is_reported_at_once() -> None:
    bucket = GOOD | {"public": True, "file_size_limit": 1, "allowed_mime_types": ["text/plain"]}
    assert len(examine_bucket(bucket, holds_artifacts=True)) == 3


def test_datasets_bucket_must_be_private_but_may_be_small() -> None:
    bucket = GOOD | {"name": "lora-datasets", "file_size_limit": 1024**2, "allowed_mime_types": ["text/plain"]}
    (fine,) = examine_bucket(bucket, holds_artifacts=False)
    assert fine.ok
    (public,) = examine_bucket(bucket | {"public": True}, holds_artifacts=False)
    assert not public.ok


@pytest.mark.parametrize("name", USER_FUNCTIONS)
def test_functions_that_users_may_call_are_no_fault_of_the_rights(name: str) -> None:
    found = examine_callers([{"name": name, "callers": ["authenticated", "service_role"]}])
    assert found == []
    (fault,) = examine_callers([{"name": name, "callers": ["anon", "authenticated"]}])
    assert fault.finding == f"anon may call {name}"
