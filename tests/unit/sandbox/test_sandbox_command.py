"""`python -m sandbox`: what it tells the worker of itself, and that it leaves nothing behind."""

from __future__ import annotations

import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sandbox.__main__ as command
from lora_worker.launchers.registry import known_variables, load_settings

PROJECT = SimpleNamespace(
    url="http://127.0.0.1:1", secret_key="sb_secret_abcdef", publishable_key="sb_publishable_abcdef",
    database_url="postgresql://127.0.0.1/x", create_user=lambda _: "id",
)  # fmt: skip
RUNPOD = SimpleNamespace(
    api_url="http://127.0.0.1:2/v2/local", api_key="rpa_it's a key", rest_url="http://127.0.0.1:3/v2"
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The sandbox with parts that are not started."""
    monkeypatch.setattr(command.LocalSupabase, "start", lambda _: nullcontext(PROJECT))
    monkeypatch.setattr(command.LocalRunPod, "start", lambda **_: nullcontext(RUNPOD))
    monkeypatch.setattr(command, "build_tiny_model", lambda cache: cache)
    return command.sandbox(tmp_path / "sandbox")


def test_a_worker_starts_with_the_sandboxs_variables(
    started: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in known_variables():
        monkeypatch.delenv(name, raising=False)
    with started as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        settings = load_settings()
        assert settings.supabase_url == PROJECT.url
        assert settings.base_models == (settings.default_base_model,)
    assert list((tmp_path / "sandbox").iterdir()) == [], "volume and model are removed"


def test_a_shell_reads_the_file_and_nobody_else_can(started: Any, tmp_path: Path) -> None:
    file = tmp_path / "environment"
    with started as environment, command.written(environment, file):
        assert file.stat().st_mode & 0o777 == 0o600
        read = subprocess.run(
            ["sh", "-c", f'. {file}; printf %s "$GPU_CLUSTER_API_KEY"'], capture_output=True, text=True, check=True
        )
        assert read.stdout == RUNPOD.api_key
    assert not file.exists()
