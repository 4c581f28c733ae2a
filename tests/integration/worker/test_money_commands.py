"""`costs` and `budget` in text and JSON, against a real project."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.commands import check_keys
from tests.processes.stage import Stage

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(stage: Stage) -> Run:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return stage.command(*arguments)

    return call


def answer(run: Run, *arguments: str) -> Any:
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_costs_are_added_up_and_filtered(run: Run, stage: Stage) -> None:
    today = datetime.now(UTC).date()
    for days, amount in ((0, 1.25), (3, 2.5)):
        stage.database.rows(
            "insert into cost_records (user_id, cost_type, amount, details, billing_period, recorded_at) values"
            " (%s, 'training_compute', %s, '{\"gpu_seconds\": 1800}', %s, now() - %s * interval '1 day')",
            stage.user.user_id, amount, today - timedelta(days=days), days,
        )  # fmt: skip
    by_user = answer(run, "costs", "--by", "user")
    check_keys("costs", by_user)
    own = next(row for row in by_user if row["key"] == stage.user.user_id)
    assert own == {"key": stage.user.user_id, "jobs": 2, "runs": 2, "gpu_seconds": 3600, "usd": 3.75}
    recent = answer(run, "costs", "--since", "24h", "--by", "user")
    assert next(row["usd"] for row in recent if row["key"] == stage.user.user_id) == 1.25
    days = [row["key"] for row in answer(run, "costs")]
    assert days == sorted(days)
    text = run("costs", "--since", (today - timedelta(days=7)).isoformat(), "--by", "model").stdout
    assert "unknown" in text
    assert "together" in text
    assert (
        run("costs", "--since", "2020-01-01", "--until", "2020-02-01").stdout == "no training was billed in this time\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--by", "month"], "--by: 'month' is none of day, user, model"),
        (["--since", "yesterday"], "'yesterday' is no time"),
        (["--since", "2026-01-02", "--until", "2026-01-01"], "--since is not before --until"),
    ],
)
def test_wrong_arguments_of_costs_are_one_sentence(run: Run, arguments: list[str], sentence: str) -> None:
    done = run("costs", *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_budgets_are_set_listed_and_removed(run: Run, stage: Stage) -> None:
    user = stage.user.user_id
    try:
        first = answer(run, "budget", "set", user, "--usd", "5")
        check_keys("budget set", first)
        assert first == {"user_id": user, "usd_per_day": 5, "changed": True}
        assert run("budget", "set", user, "--usd", "5").stdout == f"budget of {user}: was so already\n"
        assert answer(run, "budget", "set", "--usd", "50")["user_id"] is None
        state = answer(run, "budget", "list")
        check_keys("budget list", state)
        assert state["day"]["usd_per_day"] == 50
        own = next(row for row in state["budgets"] if row["user_id"] == user)
        assert own["usd_per_day"] == 5
        listed = run("budget", "list").stdout
        assert "$5.00 (own)" in listed
        assert "$50.00" in listed
        assert answer(run, "budget", "set", user, "--unlimited")["usd_per_day"] is None
    finally:
        removed = answer(run, "budget", "remove", user)
        run("budget", "remove")
    check_keys("budget remove", removed)
    assert removed == {"user_id": user, "changed": True}
    assert run("budget", "remove", user).stdout == f"budget of {user}: there was none\n"
    # A budget outlives its account, and is listed by its id.
    gone = "00000000-0000-4000-8000-000000000001"
    assert run("budget", "remove", gone).stdout == f"budget of {gone}: there was none\n"
    assert run("budget", "set", gone, "--usd", "5").returncode == 2


def test_a_budget_without_an_amount_or_a_user_is_one_sentence(run: Run) -> None:
    for arguments, sentence in (
        (["set"], "how much? Give --usd or --unlimited"),
        (["set", "--usd", "1", "--unlimited"], "how much? Give --usd or --unlimited"),
        (["set", "nobody@example.com", "--usd", "1"], "no user has the id or mail address 'nobody@example.com'"),
    ):
        done = run("budget", *arguments)
        assert done.returncode == 2
        assert sentence in done.stderr
