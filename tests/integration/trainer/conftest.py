from pathlib import Path

import pytest

from sandbox.tiny_model import build_tiny_model
from tests.project import ROOT


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """Made once and kept: the folder is ignored by git and named after what it is made from."""
    return build_tiny_model(ROOT / ".sandbox" / "models")
