"""Finished runs teach the estimates: their median counts, and neither a short run nor a lying container spoils it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from lora_worker.money.estimate import Work, estimate
from lora_worker.money.speeds import RunSpeed
from tests.database.rows import Database, Row
from tests.unit.worker.money.test_estimate import TERMS

BASE = TERMS.default_base_model
GPU = TERMS.gpus[2]
assert GPU.type == "H100"
HONEST = {"tokens": 9_000_000, "seconds": 1000.0, "steps": 300}
SLOWEST, FASTEST = (lambda s: (s.low / 10, s.high * 10))(TERMS.speed(BASE, GPU))


@pytest.fixture
def db(database: str) -> Iterator[Database]:
    connected = Database(database)
    connected.call("publish_training_terms", TERMS.model_dump(mode="json"), "w1")
    yield connected
    connected.close()


def finished_run(db: Database, pace: Any, status: str = "completed", **changes: Any) -> Row:
    """A run of one hour that ends with what its trainer says of its pace."""
    run, _, _ = db.running_run()
    db.rows(
        "update training_runs set base_model = %s, checked_in_at = now() - interval '1 hour' where id = %s",
        changes.pop("base_model", BASE), run["id"],
    )  # fmt: skip
    db.settle(run, status, pace=pace, **changes)
    return db.run(run["id"])


def speeds(db: Database, *tokens_per_second: float, user: UUID | None = None) -> None:
    """Note speeds as finished runs leave them, each a second later than the one before; by default of a user each."""
    for speed in tokens_per_second:
        run = db.claimed_run()
        db.rows("update training_speeds set noted_at = noted_at - interval '1 second'")
        db.rows(
            "insert into training_speeds (run_id, user_id, base_model, gpu_type, tokens_per_second)"
            " values (%s, %s, %s, %s, %s)",
            run["id"], user or run["user_id"], BASE, GPU.type, speed,
        )  # fmt: skip


def learned(db: Database, base: str = BASE, gpu: str = GPU.type) -> Row | None:
    found: Row | None = db.call("training_run_speed", base, gpu)
    return found


def test_three_finished_runs_teach_the_estimate_in_sql_and_python(db: Database) -> None:
    for tokens in (9_000_000, 3_000_000, 6_000_000):
        assert learned(db) is None
        finished_run(db, {**HONEST, "tokens": tokens})
    assert learned(db) == {"tokens_per_second": 6000.0, "runs": 3}
    assert learned(db, gpu="NVIDIA H100 80GB HBM3") == learned(db), "each name of the GPU means it"
    assert learned(db, gpu="L4") is None
    assert learned(db, base="Qwen/Qwen3-8B") is None

    user = db.user()
    counted = db.dataset(user)
    db.rows("update datasets set total_tokens = 1000000, total_training_pairs = 1000 where id = %s", counted)
    arguments = (counted, {"epochs": 2, "batch_size": 4}, {"type": "H100"})
    told = db.call("estimate_training_cost", *arguments)
    work = Work(tokens=1_000_000, pairs=1000, epochs=2, batch_size=4, gpu_type="H100")
    expected = estimate(work, TERMS.with_measured(BASE, "H100", RunSpeed.model_validate(learned(db))))
    before = estimate(work, TERMS)
    assert expected is not None
    assert before is not None
    assert (told["speed_source"], told["speed_runs"]) == ("runs", 3)
    assert told["tokens_per_second"] == {"low": 3600.0, "high": 9000.0}
    assert told["cost"] == {"low": expected.cost.low, "high": expected.cost.high}
    assert told["seconds"]["high"] == expected.seconds.high != before.seconds.high
    # A new job is completed with it, and what is reserved for it of a budget follows.
    job = db.jobs(user=user)[0]
    db.rows("update training_jobs set dataset_id = %s, hyperparameters = %s where id = %s",
            counted, '{"epochs": 2, "batch_size": 4}', job)  # fmt: skip
    assert float(db.call("training_may_cost", "training_jobs", job)) == expected.cost.high


@pytest.mark.parametrize(
    "pace",
    [
        None,
        "fast",
        {},
        {**HONEST, "steps": 2},
        {**HONEST, "seconds": 30},
        {**HONEST, "seconds": 0},
        {**HONEST, "seconds": -5},
        {**HONEST, "seconds": 7200},
        {**HONEST, "tokens": 0},
        {**HONEST, "tokens": "1e9"},
        {**HONEST, "tokens": 1e300},
    ],
    ids=str,
)
def test_a_pace_that_shows_nothing_or_cannot_be_true_is_not_noted(db: Database, pace: Any) -> None:
    run = finished_run(db, pace)
    assert run["settled_as"] == "completed", "the run itself settles all the same"
    assert db.rows("select * from training_speeds") == []


def test_only_a_run_that_succeeded_leaves_a_speed_and_only_once(db: Database) -> None:
    finished_run(db, HONEST, "failed")
    finished_run(db, HONEST, "queued")
    assert db.rows("select * from training_speeds") == []
    run, _, _ = db.running_run()
    db.rows("update training_runs set base_model = %s, checked_in_at = now() - interval '1 hour'", BASE)
    for _ in range(2):
        assert db.settle(run, pace=HONEST) == "completed", "a worker that lost the answer asks again"
    assert db.row("select tokens_per_second, gpu_type from training_speeds") == {
        "tokens_per_second": 9000.0, "gpu_type": "H100",
    }  # fmt: skip
    db.rows("delete from training_runs")
    assert db.rows("select * from training_speeds") == [], "what is known of an erased user's runs goes with them"


def test_speed_of_a_preference_run_says_nothing_of_others(db: Database) -> None:
    run, _, _ = db.running_run()
    db.rows(
        "update training_runs set base_model = %s, checked_in_at = now() - interval '1 hour', launched_with ="
        " launched_with || '{\"hyperparameters\": {\"method\": \"kto\"}}' where id = %s",
        BASE, run["id"],
    )  # fmt: skip
    db.settle(run, "completed", pace=HONEST)
    assert db.rows("select * from training_speeds where run_id = %s", run["id"]) == []


def test_absurd_speeds_count_for_nothing(db: Database) -> None:
    speeds(db, SLOWEST * 0.9, FASTEST * 1.1, FASTEST * 1000, 5000, 6000)
    assert learned(db) is None, "two of five are left"
    speeds(db, 7000)
    assert learned(db) == {"tokens_per_second": 6000.0, "runs": 3}


def test_one_users_runs_do_not_decide_for_everybody(db: Database) -> None:
    speeds(db, 5000, 5000, 5000)
    speeds(db, *[50_000] * 20, user=db.user())
    assert learned(db) == {"tokens_per_second": 50_000.0, "runs": 8}, "five of one user at the most"
    speeds(db, 5000, 5000, 5000)
    assert learned(db) == {"tokens_per_second": 5000.0, "runs": 11}


def test_only_the_newest_runs_count(db: Database) -> None:
    speeds(db, *[2000] * 15)
    speeds(db, *[8000] * 8)
    assert learned(db) == {"tokens_per_second": 8000.0, "runs": 15}


def test_terms_of_an_earlier_worker_still_estimate_without_runs(db: Database) -> None:
    earlier = TERMS.model_dump(mode="json", exclude={"of_runs", "measured"})
    earlier["models"] = {BASE: {"active": 7.2, "total": 7.2}}
    earlier["reference"] = {"active": 7.2, "total": 7.2}
    db.call("publish_training_terms", earlier, "old")
    speeds(db, 6000, 6000, 6000)
    user = db.user()
    counted = db.dataset(user)
    db.rows("update datasets set total_tokens = 1000000 where id = %s", counted)
    told = db.call("estimate_training_cost", counted, {}, {"type": "H100"})
    assert (told["speed_source"], told["tokens_per_second"]["low"]) == ("derived", pytest.approx(GPU.slow))
