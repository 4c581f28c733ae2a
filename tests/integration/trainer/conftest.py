from pathlib import Path

import pytest

from sandbox.tiny_model import build_tiny_model
from tests.project import ROOT


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The tiny model, built once and kept in a folder that git ignores."""
    return build_tiny_model(ROOT / ".sandbox" / "models")
