from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.tiny_model import build_tiny_model
from tests.project import ROOT


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The tiny model, built once and kept in a folder that git ignores."""
    return build_tiny_model(ROOT / ".sandbox" / "models")


@pytest.fixture(scope="package", autouse=True)
def _few_general_texts() -> Iterator[None]:
    """Trainings of these tests in this process measure four general texts instead of forty, which take a second."""
    with pytest.MonkeyPatch.context() as patch:
        from lora_trainer.data import general

        def few(*arguments: Any) -> Any:
            return general.general_rows(*arguments)[::10]

        patch.setattr("lora_trainer.recipe.evaluation.general_rows", few)
        yield
