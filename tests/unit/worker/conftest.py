"""The environment in which `lora-worker` starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.worker.variables import OTHER_NAMES, SETTINGS


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The five variables that are enough, in an empty folder; the test may change them."""
    monkeypatch.chdir(tmp_path)
    for name in OTHER_NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture
def no_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands leave logging alone: a logger keeps its first stream, and a test's stream is closed with the test."""
    monkeypatch.setattr("lora_worker.observability.telemetry.configure_logging", lambda _: None)
