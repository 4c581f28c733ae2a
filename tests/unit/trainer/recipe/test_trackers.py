"""A tracker that is turned on but cannot work loses its reports, never the training."""

import sys
from types import ModuleType

import pytest

from lora_trainer.recipe.trackers import usable_trackers

pytestmark = pytest.mark.gpu_stack

VARIABLES = ("TENSORBOARD_LOGGING_DIR", "WANDB_API_KEY", "MLFLOW_TRACKING_URI")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def install(monkeypatch, name):
    """A package of that name, as far as looking for one and importing it go."""
    from importlib.machinery import ModuleSpec

    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.run = None
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def no_packages(monkeypatch):
    for name in ("tensorboard", "torch.utils.tensorboard", "tensorboardX", "wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)


def test_no_tracker_is_used_by_default():
    assert usable_trackers() == ([], [])


@pytest.mark.parametrize("variable", VARIABLES)
def test_tracker_without_its_package_becomes_a_note(monkeypatch, no_packages, variable):
    monkeypatch.setenv(variable, "secret-value")
    names, notes = usable_trackers()
    assert names == []
    assert len(notes) == 1
    assert variable in notes[0]
    assert "secret-value" not in notes[0]


@pytest.mark.parametrize(
    ("variable", "package", "name"),
    [
        ("TENSORBOARD_LOGGING_DIR", "tensorboardX", "tensorboard"),
        ("WANDB_API_KEY", "wandb", "wandb"),
        ("MLFLOW_TRACKING_URI", "mlflow", "mlflow"),
    ],
)
def test_variable_with_its_package_enables_a_tracker(monkeypatch, no_packages, variable, package, name):
    monkeypatch.setenv(variable, "x")
    install(monkeypatch, package)
    assert usable_trackers() == ([name], [])


def test_tracker_package_that_fails_to_import_becomes_a_note(monkeypatch, tmp_path):
    (tmp_path / "mlflow.py").write_text("raise RuntimeError('built for another Python')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "x")
    names, notes = usable_trackers()
    assert names == []
    assert "mlflow" in notes[0]
