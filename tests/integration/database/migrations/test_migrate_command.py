"""`lora-worker migrate` says what it changed, reads `.env`, and asks before it undoes anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from lora_worker.commands.cli import app
from lora_worker.configuration.environment import DATABASE_VARIABLES
from lora_worker.database.migrations import describe_database
from sandbox.supabase.postgres import Postgres
from tests.commands import check_keys

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def bare_template(postgres: Postgres) -> str:
    return postgres.create_template(migrated=False)


@pytest.fixture
def url(postgres: Postgres, bare_template: str) -> Iterator[str]:
    """A fresh project without our tables."""
    with postgres.clone(bare_template) as cloned:
        yield cloned


@pytest.fixture
def run(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line in a folder whose `.env` names that project."""
    for name in DATABASE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(f"LORA_WORKER_DATABASE_URL={url}\n")
    return lambda *arguments, answer="": CliRunner().invoke(app, ["migrate", "--wait-seconds", "0", *arguments], answer)


def test_it_prints_what_changed_and_then_that_it_is_current(run: Run) -> None:
    first = run()
    assert first.exit_code == 0, first.output
    assert "added table training_runs\n" in first.output
    assert "added function claim_training_jobs(" in first.output
    second = run()
    assert second.exit_code == 0
    assert second.output.startswith("already current: ")
    assert len(second.output.splitlines()) == 1


def test_a_changed_function_and_right_are_named_alone(run: Run, url: str) -> None:
    import psycopg

    run()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop function public.training_spent_cost(public.training_runs)")
        connection.execute("grant execute on function public.queue_health() to anon")
    changed = run("--json")
    check_keys("migrate", json.loads(changed.stdout))
    assert json.loads(changed.stdout)["changes"] == [
        {"kind": "function", "name": "queue_health()", "change": "changed"},
        {"kind": "function", "name": "training_spent_cost(training_runs)", "change": "added"},
    ]


def test_undoing_asks_and_names_the_database(run: Run, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    refused = run("--down")
    assert refused.exit_code == 2
    assert "give --yes: nobody can be asked here" in refused.output
    monkeypatch.setattr("lora_worker.commands.terminal.may_ask", lambda: True)
    declined = run("--down", answer="n\n")
    assert declined.exit_code == 1
    assert f"Undo all migrations of {describe_database(url)}" in declined.output
    assert "nothing is changed" in declined.output
    assert run().output.startswith("already current")
    undone = run("--down", answer="y\n")
    assert undone.exit_code == 0
    assert "removed table training_runs\n" in undone.output
    assert run("--down", "--yes").output == "nothing to undo\n"


def test_the_named_database_never_shows_its_password() -> None:
    assert describe_database("postgresql://u:s3cr3t@db.example.com/postgres") == "postgres at db.example.com"
    assert "s3cr3t" not in describe_database("postgresql://u:s3cr3t@[::1/db")


def test_a_missing_database_is_one_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("")
    done = run()
    assert done.exit_code == 2
    assert done.output.startswith("lora-worker: which database? Set LORA_WORKER_DATABASE_URL")


def test_a_broken_env_file_is_one_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LORA_WORKER_DATABASE_URL\n")
    done = run()
    assert done.exit_code == 2
    assert ".env, line 1: is not NAME=value" in done.output


def test_storage_policies_need_a_storage(run: Run) -> None:
    done = run("--storage-policies")
    assert done.exit_code == 1
    assert "this database has no Storage" in done.output
