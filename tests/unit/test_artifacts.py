"""How a finished model is described."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from worker.artifacts import artifact_name
from worker.jobs import Dataset


@pytest.mark.parametrize("length", [1, 187, 188, 200, 255])
def test_a_models_name_fits_its_column_and_ends_with_an_iso_date_fault_41(length: int) -> None:
    dataset = Dataset(id=uuid4(), name="x" * length, storage_path="p")
    name = artifact_name(dataset, datetime(2026, 11, 24, tzinfo=UTC))
    assert len(name) <= 200
    assert name.startswith("x")
    assert name.endswith(" - 2026-11-24")
