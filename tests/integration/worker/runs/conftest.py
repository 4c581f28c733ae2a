"""A cloud of machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes.machine_cloud import Cloud, NoRunPod
from tests.processes.stage import Stage


@pytest.fixture
def cloud(stage_with: Callable[..., Stage], tmp_path: Path) -> Iterator[Cloud]:
    made = Cloud(stage_with(NoRunPod(), tmp_path / "volume"), tmp_path)
    try:
        yield made
    finally:
        made.close()
