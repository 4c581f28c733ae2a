"""Costs are added up from bills, by day, user or model, and failures by their code."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.database.rows import Database, Row

ALWAYS = ("-infinity", "infinity")


def bill(db: Database, user: UUID, amount: float, day: str = "2026-11-20", **details: Any) -> None:
    db.rows(
        "insert into cost_records (user_id, cost_type, amount, details, billing_period, recorded_at)"
        " values (%s, 'training_compute', %s, %s, %s, %s::timestamptz + interval '12 hours')",
        user, amount, psycopg.types.json.Jsonb(details), day, f"{day}T00:00:00Z",
    )  # fmt: skip


def costs(db: Database, by: str, since: str = "2026-11-01Z", until: str = "2026-12-01Z") -> list[Row]:
    call = "select training_costs(%s::timestamptz, %s::timestamptz, %s) as answer"
    found: list[Row] = db.row(call, since, until, by)["answer"]
    return found


def test_costs_of_settled_runs_by_day_user_and_model(db: Database) -> None:
    run, _, _ = db.running_run()
    db.rows("update training_runs set base_model = 'some/base' where id = %s", run["id"])
    db.settle(run, gpu_seconds=1800)
    today = db.row("select (now() at time zone 'utc')::date::text as day")["day"]
    amount = float(db.row("select amount from cost_records")["amount"])
    expected = {"jobs": 1, "runs": 1, "gpu_seconds": 1800, "usd": amount}
    for by, key in (("day", today), ("user", str(run["user_id"])), ("model", "some/base")):
        assert costs(db, by, *ALWAYS) == [{"key": key, **expected}]


def test_costs_of_a_time_are_those_recorded_in_it(db: Database) -> None:
    user, other = db.user(), db.user()
    for day, amount in (("2026-11-19", 1), ("2026-11-20", 2), ("2026-11-21", 4)):
        bill(db, user, amount, day)
    bill(db, other, 8, "2026-11-20")
    assert [(row["key"], row["usd"]) for row in costs(db, "day")] == [
        ("2026-11-19", 1), ("2026-11-20", 10), ("2026-11-21", 4)]  # fmt: skip
    assert [(row["key"], row["usd"]) for row in costs(db, "user", "2026-11-20Z", "2026-11-21Z")] == [
        (str(other), 8), (str(user), 2)]  # fmt: skip


def test_bills_of_other_programs_count_whatever_their_details_hold(db: Database) -> None:
    user = db.user()
    bill(db, user, 1, duration_hours=0.5, gpu_type="A100")
    bill(db, user, 2, run_id="no run", gpu_seconds="many", job_id=["x"])
    db.rows(
        "insert into cost_records (user_id, cost_type, amount, billing_period) values (%s, 'storage', 50, now())", user
    )
    (found,) = costs(db, "model")
    assert found == {"key": "unknown", "jobs": 2, "runs": 2, "gpu_seconds": 1800, "usd": 3}


def test_costs_by_anything_else_are_refused(db: Database) -> None:
    for wrong in ("month", None):
        with pytest.raises(psycopg.Error, match="by must be day, user or model"):
            costs(db, wrong)  # type: ignore[arg-type]


def test_failures_are_counted_by_code_without_later_attempts(db: Database) -> None:
    for code, message in (
        ("dataset_invalid", "Line 1."),
        ("dataset_invalid", "Line 2."),
        ("out_of_memory", "Too big."),
    ):
        db.settle(db.claimed_run(), "failed", error_code=code, error_message=message)
    db.settle(db.claimed_run(), "queued", error_code="preempted")
    db.settle(db.claimed_run(), "completed")
    first, second = db.call("training_failures", "-infinity")
    assert (first["error_code"], first["jobs"], first["users"], first["message"]) == (
        "dataset_invalid",
        2,
        2,
        "Line 2.",
    )
    assert (second["error_code"], second["jobs"]) == ("out_of_memory", 1)
    assert db.call("training_failures", "infinity") == []
