"""What a trainer sends with its heartbeat is stored within bounds, for its own run, and given to its worker once."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from lora_contract.protocol import Point, Progress, Stage
from lora_trainer.run.sizes import fit_heartbeat
from tests.database.rows import Database, Row

PROGRESS = {"run_id": "r", "stage": "training", "progress": 40, "current_step": 7, "points": []}


def beat(db: Database, run: Row, token: str, execution: str, progress: Any = PROGRESS) -> Row:
    answer = db.call("heartbeat_run", token, run["external_job_id"], execution, json.dumps(progress))
    assert isinstance(answer, dict)
    return answer


def renewed(db: Database, *runs: Row, **read: int) -> list[Row]:
    """The news of these runs; `read` holds the number of the last report that was read, by the run's id."""
    leases = [
        {
            "run_id": str(run["id"]),
            "lease_token": str(run["lease_token"]),
            "progress_number": read.get(str(run["id"]), 0),
        }
        for run in runs
    ]
    news: list[Row] = db.call("renew_training_runs_2", leases, 60)
    return news


def test_progress_goes_to_the_worker_once_for_each_report(db: Database) -> None:
    run, token, execution = db.running_run()
    (news,) = renewed(db, run)
    assert (news["held"], news["progress"], news["progress_number"]) == (True, None, None)
    assert beat(db, run, token, execution) == {
        "may_train": True, "reason": "ok", "cancel_requested": False, "attempt": 1, "progress_stored": True,
    }  # fmt: skip
    (news,) = renewed(db, run)
    assert (news["progress"], news["progress_number"]) == (PROGRESS, 1)
    (news,) = renewed(db, run, **{str(run["id"]): 1})
    assert (news["progress"], news["progress_number"]) == (None, None)
    beat(db, run, token, execution, {**PROGRESS, "current_step": 8})
    (news,) = renewed(db, run, **{str(run["id"]): 1})
    assert (news["progress"]["current_step"], news["progress_number"]) == (8, 2)


def test_progress_is_stored_only_for_the_execution_that_trains(db: Database) -> None:
    run, token, execution = db.running_run()
    other, _, _ = db.running_run()
    assert beat(db, run, "wrong", execution) == {
        "may_train": False,
        "reason": "unknown_token",
        "progress_stored": False,
    }
    newer = str(uuid4())
    assert beat(db, run, token, newer)["progress_stored"]
    assert beat(db, run, token, execution, {**PROGRESS, "current_step": 999})["reason"] == "superseded"
    (news,) = renewed(db, run)
    assert news["progress"]["current_step"] == 7
    (news,) = renewed(db, other)
    assert news["progress"] is None


@pytest.mark.parametrize(
    "lie",
    [
        {**PROGRESS, "points": ["x" * 50_000]},
        {**PROGRESS, "points": ["x" * 3_000_000]},
        {**PROGRESS, "current_step": 10**25},
        {"deep": [[[[[[[[[[1]]]]]]]]]]},
        [PROGRESS],
        "text",
        7,
        None,
    ],
    ids=lambda value: str(value)[:40],
)
def test_unreadable_progress_is_left_out_and_the_heartbeat_counts(db: Database, lie: Any) -> None:
    run, token, execution = db.running_run()
    seen = db.run(run["id"])["last_seen_at"]
    if lie == "text":
        # As the lightweight Supabase would send it: a string that should hold JSON.
        lie = json.dumps(PROGRESS["stage"])
    answer = beat(db, run, token, execution, lie)
    assert (answer["may_train"], answer["progress_stored"]) == (True, False)
    assert db.run(run["id"])["last_seen_at"] > seen
    assert db.rows("select from training_progress") == []


def test_largest_progress_of_the_trainer_is_stored(db: Database) -> None:
    run, token, execution = db.running_run()
    numbers = dict.fromkeys(
        ("training_loss", "validation_loss", "learning_rate", "gradient_norm", "throughput", "gpu_utilization"), 5e-324
    )
    points = [Point(step=step, epoch=1.0, gpu_memory_bytes=2**53, **numbers) for step in range(1, 1001)]
    metrics = {f"€{number}{'m' * 90}": 1.7e308 for number in range(50)}
    longest = Progress(
        run_id="r" * 400, stage=Stage.TRAINING, progress=50, points=points, metrics=metrics, gpu_type="€" * 400
    )
    assert beat(db, run, token, execution, fit_heartbeat(longest))["progress_stored"]


def test_renewal_holds_a_megabyte_of_progress_and_the_rest_comes_later(db: Database) -> None:
    running = [db.running_run() for _ in range(40)]
    for run, token, execution in running:
        assert beat(db, run, token, execution, {**PROGRESS, "points": ["x" * 39_000]})["progress_stored"]
    runs = [run for run, _, _ in running]
    read: dict[str, int] = {}
    for _ in range(4):
        news = renewed(db, *runs, **read)
        assert len(news) == 40
        assert len(json.dumps(news)) < 1_100_000
        read |= {each["run_id"]: each["progress_number"] for each in news if each["progress"]}
    assert len(read) == 40


def test_progress_goes_with_the_end_of_its_run(db: Database) -> None:
    run, token, execution = db.running_run()
    beat(db, run, token, execution)
    assert db.settle(run) == "completed"
    assert db.rows("select from training_progress") == []
    assert beat(db, run, token, execution)["progress_stored"] is False


def test_run_of_another_launcher_is_left_to_its_own_worker(db: Database) -> None:
    run, _ = db.launched_run()
    db.expire(run["id"])
    assert db.call("adopt_training_runs_3", "w2", 10, 60, "{neighbour}") == []
    (adopted,) = db.call("adopt_training_runs_3", "w2", 10, 60, "{modal,runpod}")
    assert adopted["run"]["id"] == str(run["id"])


def test_unlaunched_run_is_adopted_by_a_worker_of_any_launcher(db: Database) -> None:
    run = db.claimed_run()
    db.expire(run["id"])
    assert len(db.call("adopt_training_runs_3", "w2", 10, 60, "{neighbour}")) == 1
