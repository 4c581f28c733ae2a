"""A launcher of RunPod whose API answers as the test says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import respx

from lora_worker.launchers.runpod.launcher import RunPodLauncher

URL = "https://api.runpod.ai/v2/ep"


@pytest.fixture
async def launcher() -> AsyncIterator[RunPodLauncher]:
    async with httpx.AsyncClient() as http:
        yield RunPodLauncher(URL, "key", http=http)


@pytest.fixture
def api() -> Any:
    with respx.mock(base_url=URL, assert_all_called=False) as mock:
        yield mock
