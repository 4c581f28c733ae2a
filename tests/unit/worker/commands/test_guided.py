"""`setup` goes through the single commands in order, stops at the first failure, and asks only for what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from lora_worker.commands import deploy, deploy_prefetch, guided, setup
from lora_worker.commands.cli import app

pytestmark = pytest.mark.usefixtures("no_logging")

KEYS = {
    "SUPABASE_URL": "https://p.supabase.co",
    "SUPABASE_SECRET_KEY": "sb_secret_x",
    "SUPABASE_ANON_KEY": "sb_publishable_x",
    "LORA_WORKER_DATABASE_URL": "postgresql://u:pw@db.example/postgres",
    "RUNPOD_API_KEY": "rpa_x",
}


@pytest.fixture
def steps(environment: pytest.MonkeyPatch) -> list[str]:
    """The single commands that were called; none of them does anything."""
    done: list[str] = []
    for variable in {name for needed in guided.NEEDED for name in needed.names}:
        environment.delenv(variable, raising=False)

    def record(module: Any, name: str) -> None:
        environment.setattr(module, name, lambda **_: done.append(name))

    record(setup, "migrate")
    record(deploy, "apply")
    record(deploy_prefetch, "prefetch")
    record(setup, "doctor")
    return done


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["setup", *arguments], catch_exceptions=False)
    return result.exit_code, result.output


OPTIONS = ("--yes", "--image", "ghcr.io/you/lora-trainer:0.2.0", "--data-center", "EU-RO-1")


def test_single_commands_follow_each_other(steps: list[str], environment: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        environment.setenv(name, value)
    code, output = run(*OPTIONS)
    assert (code, steps) == (0, ["migrate", "apply", "prefetch", "doctor"])
    assert 'image = "ghcr.io/you/lora-trainer:0.2.0"' in Path("deploy.toml").read_text()
    assert "deploy smoke" in output
    # The file is there now, and is left as it is.
    before = Path("deploy.toml").read_text()
    assert run("--yes", "--image", "ghcr.io/you/other:1", "--no-prefetch")[0] == 0
    assert Path("deploy.toml").read_text() == before
    assert steps[4:] == ["migrate", "apply", "doctor"]


def test_missing_keys_are_all_named_at_once_where_nobody_can_be_asked(
    steps: list[str], environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("SUPABASE_URL", KEYS["SUPABASE_URL"])
    code, output = run(*OPTIONS)
    assert (code, steps) == (2, [])
    assert "SUPABASE_URL" not in output
    for name in (
        "SUPABASE_SERVICE_ROLE_KEY",
        "SUPABASE_PUBLISHABLE_KEY",
        "LORA_WORKER_DATABASE_URL",
        "GPU_CLUSTER_API_KEY",
    ):
        assert name in output
    assert not Path(".env").exists()


def test_answers_are_written_to_the_env_file_and_not_shown(steps: list[str], environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SUPABASE_URL", KEYS["SUPABASE_URL"])
    environment.setattr(guided, "may_ask", lambda: True)
    answers = "sb_secret_typed\nsb_publishable_typed\npostgresql://u:typed@db.example/postgres\nrpa_typed\n"
    result = CliRunner().invoke(app, ["setup", *OPTIONS[1:]], input=answers, catch_exceptions=False)
    assert (result.exit_code, steps[0]) == (0, "migrate")
    assert "typed" not in result.output
    written = Path(".env").read_text()
    assert all(f"{needed.names[0]}=" in written for needed in guided.NEEDED[1:])
    assert Path(".env").stat().st_mode & 0o077 == 0


def test_failure_ends_it_before_anything_costs_money(steps: list[str], environment: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        environment.setenv(name, value)

    def refuse(**_: Any) -> None:
        raise typer.Exit(1)

    environment.setattr(setup, "migrate", refuse)
    assert run(*OPTIONS)[0] == 1
    assert steps == []
    assert not Path("deploy.toml").exists()
