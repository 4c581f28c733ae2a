"""What several unit tests need."""

from __future__ import annotations

import pytest

from lora_worker.services import Services
from tests.scripted import make_services


@pytest.fixture
def services() -> Services:
    """Services without a network."""
    return make_services()
