"""Runs commands of `lora-worker` in this process, and keeps the keys of their JSON stable.

For a test of a command:

    def test_command(environment: ..., monkeypatch: pytest.MonkeyPatch) -> None:
        give_services(monkeypatch, make_services(queue=...))
        done = run_command("status", "--json")
        check_keys("status", json.loads(done.stdout))

`check_keys` compares the keys of an answer with `tests/data/command_keys/<command>.json`, which programs of operators
rely on: keys may be added, and none goes. With UPDATE_COMMAND_KEYS=1 in the environment it writes the
file instead; look at the difference before you commit it. Let the answer have an element in each of its lists.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from click.testing import Result
from typer.main import get_command
from typer.testing import CliRunner

from lora_worker.commands.cli import app
from lora_worker.services import Services
from tests.project import ROOT

_FOLDER = ROOT / "tests" / "data" / "command_keys"

OPAQUE = frozenset(
    {"hyperparameters", "gpu_config", "current_metrics", "quality_metrics", "training_summary", "artifacts", "estimate"}
)
"""Keys below which users and trainers write what they like: their content has no stable keys."""


def all_commands() -> dict[str, bool]:
    """Return every command of `lora-worker`, such as "deploy plan", and whether it takes `--json`."""
    found: dict[str, bool] = {}

    def walk(command: Any, name: str) -> None:
        for inner, below in getattr(command, "commands", {}).items():
            walk(below, f"{name} {inner}".strip())
        if not hasattr(command, "commands"):
            found[name] = any("--json" in option.opts for option in command.params)

    walk(get_command(app), "")
    return found


def commands_with_keys() -> set[str]:
    """Return the commands, as `check_keys` was told, of which there are golden keys."""
    return {file.stem for file in _FOLDER.glob("*.json")}


def run_command(*arguments: str, stdin: str | bytes | None = None) -> Result:
    """Run `lora-worker` with these arguments. Its output is that of a pipe; exceptions that it does not handle fail."""
    return CliRunner().invoke(app, arguments, input=stdin, catch_exceptions=False)


def give_services(monkeypatch: pytest.MonkeyPatch, services: Services) -> None:
    """Let each command that opens the services get these. The fixture `environment` gives it valid settings."""

    @asynccontextmanager
    async def opened(*_: Any, **__: Any) -> AsyncIterator[Services]:
        yield services

    monkeypatch.setattr("lora_worker.services.open_services", opened)
    # Commands leave logging alone: a logger keeps its first stream, and a test's stream is closed with the test.
    monkeypatch.setattr("lora_worker.observability.telemetry.configure_logging", lambda _: None)


def key_paths(value: Any, *, opaque: Iterable[str] = OPAQUE, path: str = "") -> Iterator[str]:
    """Yield the paths of all keys of a JSON value, such as `jobs[].job_id`."""
    if isinstance(value, list):
        for element in value:
            yield from key_paths(element, opaque=opaque, path=f"{path}[]")
    elif isinstance(value, dict):
        for key, inner in value.items():
            here = f"{path}.{key}" if path else key
            yield here
            if key not in opaque:
                yield from key_paths(inner, opaque=opaque, path=here)


def check_keys(command: str, value: Any, *, opaque: Iterable[str] = OPAQUE) -> None:
    """Fail if the keys of a command's JSON are others than before.

    `command` is a name such as "status" or "deploy plan". Keys in `opaque` are listed, and what is below them is not.
    """
    file = _FOLDER / f"{command.replace(' ', '_')}.json"
    found = sorted(set(key_paths(value, opaque=opaque)))
    if os.environ.get("UPDATE_COMMAND_KEYS"):
        _FOLDER.mkdir(exist_ok=True)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    assert file.exists(), f"{file.name} is missing: run this test with UPDATE_COMMAND_KEYS=1"
    assert found == json.loads(file.read_text(encoding="utf-8")), f"the keys of `{command} --json` have changed"
