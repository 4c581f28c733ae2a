"""A dataset's file name that Storage can't serve is refused before a GPU is paid for."""

from __future__ import annotations

from uuid import uuid4

import pytest

from lora_worker.database.rows import Dataset, Job
from lora_worker.datasets.preflight import check_dataset_row
from lora_worker.errors import PreflightError

USER = uuid4()


def checked(path: str) -> Dataset:
    dataset = Dataset(
        id=uuid4(), name="Zebras", user_id=USER, status="ready", training_ready=True, storage_path=f"{USER}/d/{path}"
    )
    return check_dataset_row(Job(id=uuid4(), user_id=USER), dataset)


@pytest.mark.parametrize("path", ["a.jsonl", "Q&A (v2).jsonl", "/a.jsonl", "größe.jsonl", "100%.jsonl"])
def test_valid_dataset_name_is_looked_up_in_storage(path: str) -> None:
    assert checked(path).name == "Zebras"


def test_dataset_name_without_a_usable_signed_url_fails() -> None:
    with pytest.raises(PreflightError, match=r"has a \? in its name.*rename the file"):
        checked("what?.jsonl")
