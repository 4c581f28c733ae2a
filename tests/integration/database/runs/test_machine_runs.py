"""Results that trainers report themselves, and launches that were never recorded, in the database."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from lora_contract.protocol import Point, Result
from lora_trainer.run.sizes import fit_report
from tests.database.rows import Database, Row

RESULT = {"run_id": "r", "status": "failed", "error": {"code": "internal", "message": "No."}}


def finish(db: Database, run: Row, token: str, execution: str, result: Any = RESULT) -> Row:
    answer: Row = db.call("finish_run", token, run["external_job_id"], execution, json.dumps(result))
    return answer


def news_of(db: Database, *runs: Row, **more: Any) -> list[Any]:
    """The results in the news of these runs."""
    leases = [{"run_id": str(run["id"]), "lease_token": str(run["lease_token"]), **more} for run in runs]
    results = {news["run_id"]: news["result"] for news in db.call("renew_training_runs_2", leases, 60)}
    return [results[str(run["id"])] for run in runs]


def test_result_goes_to_the_worker_until_it_has_it(db: Database) -> None:
    run, token, execution = db.running_run()
    assert news_of(db, run, has_result=False) == [None]
    assert finish(db, run, token, execution) == {
        "may_train": True, "reason": "ok", "cancel_requested": False, "attempt": 1, "result_stored": True,
    }  # fmt: skip
    assert news_of(db, run, has_result=False) == [RESULT]
    assert news_of(db, run, has_result=True) == [None]
    assert news_of(db, run) == [None], "a worker of before did not ask"
    assert news_of(db, {**run, "lease_token": uuid4()}, has_result=False) == [None]


def test_first_word_of_the_execution_that_trains_counts(db: Database) -> None:
    run, token, execution = db.running_run()
    other, other_token, _ = db.running_run()
    assert finish(db, run, "wrong", execution)["result_stored"] is False
    assert finish(db, {**run, "external_job_id": "another"}, token, execution)["result_stored"] is False
    assert finish(db, run, other_token, execution)["result_stored"] is False
    assert finish(db, run, token, execution)["result_stored"] is True
    assert finish(db, run, token, execution, {**RESULT, "status": "completed"})["result_stored"] is True
    assert news_of(db, run, other, has_result=False) == [RESULT, None]


def test_container_that_is_started_again_after_its_result_trains_nothing(db: Database) -> None:
    run, token, execution = db.running_run()
    finish(db, run, token, execution)
    again = str(uuid4())
    assert db.call("check_in_run", token, run["external_job_id"], again)["reason"] == "ended"
    assert finish(db, run, token, again)["result_stored"] is False
    assert db.call("check_in_run", token, run["external_job_id"], execution)["may_train"] is True
    assert str(db.run(run["id"])["execution_id"]) == execution


def test_trainer_that_failed_before_its_check_in_is_heard(db: Database) -> None:
    run, token = db.launched_run("lora-1")
    assert finish(db, {**run, "external_job_id": "lora-1"}, token, str(uuid4()))["result_stored"] is True
    assert db.run(run["id"])["checked_in_at"] is not None


def test_result_of_a_cancelled_job_is_kept_for_its_settlement(db: Database) -> None:
    run, token, execution = db.running_run()
    db.rows("update training_jobs set status = 'cancelled' where id = %s", run["job_id"])
    answer = finish(db, run, token, execution)
    assert (answer["may_train"], answer["reason"], answer["result_stored"]) == (False, "cancelled", True)


def test_result_goes_with_the_end_of_its_run(db: Database) -> None:
    run, token, execution = db.running_run()
    finish(db, run, token, execution)
    assert db.settle(run) == "completed"
    assert db.rows("select from training_results") == []
    assert finish(db, run, token, execution)["result_stored"] is False


@pytest.mark.parametrize(
    "lie",
    [{"a": "x" * 210_000}, {"a": "x" * 5_000_000}, {"a": 10**25}, {"a": [[[[[[[[[1]]]]]]]]]}, [RESULT], 7, None],
    ids=lambda value: str(value)[:30],
)
def test_unreadable_result_is_left_out(db: Database, lie: Any) -> None:
    run, token, execution = db.running_run()
    answer = finish(db, run, token, execution, lie)
    assert (answer["may_train"], answer["result_stored"]) == (True, False)
    assert db.rows("select from training_results") == []


def test_largest_result_of_the_trainer_is_stored(db: Database) -> None:
    run, token, execution = db.running_run()
    points = [Point(step=step, epoch=1.0, training_loss=5e-324, learning_rate=1e-300) for step in range(1, 5001)]
    error = {"code": "internal", "message": "\0€" * 1000}
    longest = Result(run_id="r" * 400, status="failed", error=error, points=points, log=["€\ud800" * 400] * 200)
    assert finish(db, run, token, execution, fit_report(longest))["result_stored"]


def test_renewal_holds_a_megabyte_of_results_and_the_rest_comes_later(db: Database) -> None:
    running = [db.running_run() for _ in range(8)]
    for run, token, execution in running:
        assert finish(db, run, token, execution, {"a": "x" * 190_000})["result_stored"]
    waiting = [run for run, _, _ in running]
    for most in (8, 3):
        results = news_of(db, *waiting, has_result=False)
        assert len(json.dumps(results)) < 1_100_000
        assert len(results) == most
        waiting = [run for run, result in zip(waiting, results, strict=True) if result is None]
    assert waiting == []


# ── launches that were never recorded ───────────────────────────────────────────────────────────────


def own(db: Database, *launches: tuple[str, Any], launcher: str = "pods", endpoint: str = "here") -> list[str]:
    """What is found of these launches (id, run) in the launcher's account."""
    told = [{"external_job_id": name, "run_id": str(run)} for name, run in launches]
    return [entry["found"] for entry in db.call("note_owned_launches", launcher, endpoint, told)]


def begun(db: Database, launcher: str = "pods", endpoint: str = "here") -> Row:
    """A run whose worker died between the submission and the record of its id."""
    run = db.claimed_run()
    db.call("begin_launch", run["id"], run["lease_token"], launcher, uuid4().hex, {"gpu_type": "H100"}, endpoint)
    return run


def strays(db: Database) -> list[str]:
    return [row["external_job_id"] for row in db.rows("select external_job_id from training_strays()")]


def test_unrecorded_launch_is_its_live_runs_own(db: Database) -> None:
    run = begun(db)
    assert own(db, ("pod-1", run["id"])) == ["noted"]
    noted = db.run(run["id"])
    assert (noted["status"], noted["external_job_id"], noted["endpoint"]) == ("launched", "pod-1", "here")
    assert db.job(run["job_id"])["external_job_id"] == "pod-1"
    assert len(db.rows("select from training_launches")) == 1
    assert own(db, ("pod-1", run["id"])) == [], "it is known now"
    assert db.call("record_launch", run["id"], run["lease_token"], "pods", "pod-1", "here") is True
    assert len(db.rows("select from training_launches")) == 1
    assert strays(db) == []


def test_unrecorded_launch_of_an_ended_run_is_a_stray_and_billed(db: Database) -> None:
    run = begun(db)
    db.settle(run, "cancelled", run_status="cancelled")
    assert own(db, ("pod-1", run["id"])) == ["noted"]
    assert strays(db) == ["pod-1"]
    db.rows("update training_launches set posted_at = now() - interval '1 hour'")
    assert db.call("close_launches", [{"external_job_id": "pod-1", "gpu_seconds": 600}]) == 1
    assert db.row("select gpu_seconds from training_launches")["gpu_seconds"] == 600
    assert strays(db) == []


def test_unrecorded_launch_beside_another_leaves_the_run_to_that(db: Database) -> None:
    run, token = db.launched_run("pod-2")
    assert own(db, ("pod-1", run["id"]), launcher="runpod") == ["noted"]
    assert db.run(run["id"])["external_job_id"] == "pod-2"
    assert strays(db) == [], "nobody has checked in yet"
    db.call("check_in_run", token, "pod-2", str(uuid4()))
    assert strays(db) == ["pod-1"]


def test_launch_takes_the_intent_of_its_own_launcher(db: Database) -> None:
    run = begun(db, "runpod", "elsewhere")
    assert own(db, ("pod-1", run["id"])) == ["noted"]
    assert {(row["launcher"], row["external_job_id"]) for row in db.rows("select * from training_launches")} == {
        ("runpod", None),
        ("pods", "pod-1"),
    }


def test_launch_that_was_taken_for_ended_and_lives_is_stopped_again(db: Database) -> None:
    run, _ = db.launched_run("pod-1")
    db.settle(run)
    db.call("close_launches", [{"external_job_id": "pod-1", "gpu_seconds": 5}])
    assert own(db, ("pod-1", run["id"])) == [], "the cloud's list may lag behind"
    db.rows("update training_launches set ended_at = now() - interval '6 minutes'")
    assert own(db, ("pod-1", run["id"])) == ["reopened"]
    assert strays(db) == ["pod-1"]


def test_launch_of_an_unknown_run_or_under_another_runs_id_changes_nothing(db: Database) -> None:
    (liar, _), honest = db.launched_run("pod-1"), begun(db)
    before = db.snapshot()
    assert own(db, ("pod-9", uuid4())) == ["no_run"]
    assert own(db, ("pod-1", honest["id"])) == ["another_runs"]
    assert db.snapshot() == before
    assert db.run(liar["id"])["external_job_id"] == "pod-1"
