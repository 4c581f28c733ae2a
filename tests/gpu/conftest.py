"""Tests that need an NVIDIA GPU. Elsewhere they are collected and skipped.

Nothing above this folder is needed: `make gpu` runs it with `--confcutdir tests/gpu`, where the packages of the other
tests' conftest.py may be missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lora_trainer.models.hardware import Hardware, detect_hardware
from sandbox.tiny_model import build_tiny_model


@pytest.fixture(autouse=True)
def _gpu_memory() -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip("there is no NVIDIA GPU here")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    torch.cuda.empty_cache()


@pytest.fixture
def hardware() -> Hardware:
    return detect_hardware()


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    return build_tiny_model(Path(__file__).parents[2] / ".sandbox" / "models")
