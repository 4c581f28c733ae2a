"""The browser of the dashboard's tests: a named one, the npm package's, or an installed one; else a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.browser import chromium
from sandbox.errors import ToolMissingError


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine for which the npm package has no browser; programs are found in the returned folder only."""
    monkeypatch.delenv(chromium.VARIABLE, raising=False)
    monkeypatch.setattr(chromium.platform, "machine", lambda: "riscv64")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_named_browser_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    named = program(tmp_path / "mine", "echo Chromium 1.2.3")
    monkeypatch.setenv(chromium.VARIABLE, str(named))
    found = chromium.find_chromium(tmp_path)
    assert (found.executable, found.env, found.version) == (named, {}, "Chromium 1.2.3")


def test_installed_browser_is_used_where_the_package_has_none(elsewhere: Path) -> None:
    installed = program(elsewhere / "chromium-browser", "echo x")
    assert chromium.find_chromium(elsewhere).executable == installed


def test_missing_browser_is_a_sentence_with_the_remedy(elsewhere: Path) -> None:
    with pytest.raises(ToolMissingError, match=r"there is no Chromium: .*apt-get install chromium"):
        chromium.find_chromium(elsewhere)


@pytest.mark.parametrize("script", [None, "echo libnss3.so is missing >&2; exit 127"])
def test_browser_that_does_not_start_is_a_sentence(tmp_path: Path, script: str | None) -> None:
    broken = tmp_path / "chromium"
    if script is not None:
        program(broken, script)
    with pytest.raises(ToolMissingError, match=r"start.*apt-get install chromium"):
        _ = chromium.Chromium(broken).version
