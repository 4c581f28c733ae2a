"""A bill never exceeds the wall clock or the job's cap, in whatever order launches and runs end."""

from __future__ import annotations

import hashlib
from typing import Any
from uuid import uuid4

import pytest

from tests.application.pipeline import Pipeline
from tests.database.rows import H100, Database, Row, outcome, report


def costs(db: Database, run: Row) -> list[Row]:
    return db.rows("select * from cost_records where details->>'job_id' = %s order by recorded_at", str(run["job_id"]))


def total(db: Database, run: Row) -> float:
    return float(sum(cost["amount"] for cost in costs(db, run)))


def begun(db: Database, run: Row, **launched_with: Any) -> str:
    """Begin a launch now; returns the run's token."""
    token = uuid4().hex + uuid4().hex
    sha256 = hashlib.sha256(token.encode()).hexdigest()
    with_what = {**H100, **launched_with}
    assert db.call("begin_launch", run["id"], run["lease_token"], "runpod", sha256, with_what)["may_launch"]
    return token


def running(db: Database, **launched_with: Any) -> tuple[Row, str]:
    """Launch a run now and check it in; returns the run and its token."""
    run = db.claimed_run()
    token = begun(db, run, **launched_with)
    assert db.call("check_in_run", token, f"ext-{run['id']}", str(uuid4()))["may_train"]
    return db.run(run["id"]), token


@pytest.fixture(params=["training_jobs", "pipeline_training_jobs"])
def newest(request: pytest.FixtureRequest, db: Database) -> Any:
    """A function that makes a running run of either queue, launched now."""
    if request.param == "training_jobs":
        return lambda **more: running(db, **more)
    pipeline: Pipeline = request.getfixturevalue("pipeline")

    def make(**launched_with: Any) -> tuple[Row, str]:
        user = db.user()
        dataset = db.dataset(user)
        pipeline.queue(user_id=user, dataset_id=dataset)
        (given,) = db.claim()
        token = begun(db, given["run"], **launched_with)
        assert db.call("check_in_run", token, f"ext-{given['run']['id']}", str(uuid4()))["may_train"]
        return db.run(given["run"]["id"]), token

    return make


def test_exaggerated_gpu_seconds_are_bounded_by_the_wall_clock(db: Database, newest: Any) -> None:
    run, _ = newest()
    db.worked(run, 100)
    db.settle(run, "failed", gpu_seconds=10_000_000)
    (cost,) = costs(db, run)
    assert 100 <= cost["details"]["gpu_seconds"] < 200
    assert float(cost["amount"]) == pytest.approx(0.12, abs=0.11)


def test_cost_cap_covers_all_runs_of_a_job(db: Database, newest: Any) -> None:
    run, _ = newest(max_cost=5)
    db.worked(run, 3600)
    db.settle(run, "queued", gpu_seconds=3600, retry_after_seconds=0)
    assert total(db, run) == 4.18
    (given,) = db.claim()
    assert given["run"]["spent_cost"] == 4.18
    begun(db, given["run"], max_cost=5)
    db.call("record_launch", given["run"]["id"], given["run"]["lease_token"], "runpod", "second")
    db.worked(given["run"], 3600)
    db.settle(given["run"], "failed", gpu_seconds=3600)
    assert total(db, run) == 5.00
    last = costs(db, run)[-1]
    assert float(last["amount"]) == 0.82
    assert last["details"]["amount_before_cap"] == 4.18


def test_cost_cap_holds_for_seconds_reported_late(db: Database, newest: Any) -> None:
    run, token = newest(max_cost=5)
    db.worked(run, 36_000)
    db.call("check_in_run", token, "loser", str(uuid4()))
    db.settle(run, "failed", gpu_seconds=3600)
    assert db.call("close_launches", [{"external_job_id": "loser", "gpu_seconds": 36_000}]) == 1
    (cost,) = costs(db, run)
    assert float(cost["amount"]) == 5.00
    assert cost["details"]["gpu_seconds"] == 3600 + 36_000
    if run["queue"] == "training_jobs":
        assert float(db.job(run["job_id"])["final_cost"]) == 5.00


def test_seconds_reported_late_are_bounded_by_the_wall_clock(db: Database) -> None:
    run, token = running(db)
    db.call("check_in_run", token, "loser", str(uuid4()))
    db.settle(run, "failed", gpu_seconds=0)
    db.call("close_launches", [{"external_job_id": "loser", "gpu_seconds": 10_000_000}])
    (cost,) = costs(db, run)
    assert cost["details"]["gpu_seconds"] < 100


def test_cost_cap_holds_while_a_run_is_in_progress(db: Database) -> None:
    run, _ = running(db, max_cost=5)
    assert db.call("record_progress", [report(run, current_cost=7611.0)])[0]["applied"]
    assert float(db.job(run["job_id"])["current_cost"]) == 5.00


@pytest.mark.parametrize("seconds", ["NaN", "Infinity", "-5", "1e30"])
def test_invalid_gpu_seconds_still_settle_the_run(db: Database, seconds: str) -> None:
    run, _ = running(db)
    assert db.settle(run, "failed", gpu_seconds=seconds) == "failed"
    assert total(db, run) <= 0.2


def test_unconfirmed_launch_that_checks_in_after_a_cancel_is_billed(db: Database, newest: Any) -> None:
    run, token = newest()
    # As before the check-in: the launch was sent, not answered, and given up.
    db.rows("update training_runs set status = 'claimed', external_job_id = null, checked_in_at = null,"
            " last_seen_at = null, execution_id = null where id = %s", run["id"])  # fmt: skip
    db.rows("update training_launches set external_job_id = null where run_id = %s", run["id"])
    assert db.settle(run, "cancelled", gpu_seconds=0) == "cancelled"
    assert costs(db, run) == []
    db.worked(run, 60)
    answer = db.call("check_in_run", token, "late", str(uuid4()))
    assert (answer["may_train"], answer["reason"]) == (False, "cancelled")
    assert [stray["external_job_id"] for stray in db.call("stray_launches", 10)] == ["late"]
    assert db.call("close_launches", [{"external_job_id": "late", "gpu_seconds": 36}]) == 1
    (cost,) = costs(db, run)
    assert (cost["details"]["gpu_seconds"], float(cost["amount"])) == (36, 0.04)
    assert (cost["details"]["gpu_type"], cost["details"]["outcome"]) == ("H100", "cancelled")
    assert cost["user_id"] == run["user_id"]


def test_late_trainer_with_unknown_gpu_time_still_gets_a_cost_record(db: Database) -> None:
    run = db.claimed_run()
    token = begun(db, run)
    db.settle(run, "cancelled", gpu_seconds=0)
    db.call("check_in_run", token, "late", str(uuid4()))
    db.call("close_launches", [{"external_job_id": "late", "gpu_seconds": 0}])
    assert [float(cost["amount"]) for cost in costs(db, run)] == [0]


def test_launches_that_never_ran_get_no_cost_record(db: Database) -> None:
    run, _ = db.launched_run("never")
    db.settle(run, "cancelled", gpu_seconds=0, launcher_ended=False)
    assert db.call("close_launches", [{"external_job_id": "never", "gpu_seconds": 0}]) == 1
    assert costs(db, run) == []


def test_settling_twice_with_the_same_lease_is_idempotent(db: Database) -> None:
    for status in ("completed", "failed", "cancelled", "queued"):
        run, _, _ = db.running_run()
        assert db.settle(run, status) == status
        assert db.settle(run, status, gpu_seconds=3000) == status
        assert len(costs(db, run)) == 1
        assert db.call("settle_run", run["id"], uuid4(), outcome(status)) is None


def test_gpu_seconds_add_up_over_all_attempts(db: Database) -> None:
    run, _, _ = db.running_run()
    db.settle(run, "queued", gpu_seconds=1800, retry_after_seconds=0)
    (given,) = db.claim()
    assert given["run"]["spent_seconds"] == 1800
    db.expire(given["run"]["id"])
    (adopted,) = db.call("adopt_training_runs", "w2", 1, 60)
    assert adopted["run"]["spent_seconds"] == 1800


@pytest.mark.parametrize(("code", "awaits"), [("grant_missing", True), ("proof_missing", True), ("internal", False)])
def test_assignment_says_whether_an_earlier_run_has_trained(db: Database, code: str, awaits: bool) -> None:
    run = db.claimed_run()
    assert run["awaits_upload"] is False
    for ends in (code, "lost"):
        db.settle(run, "queued", error_code=ends, retry_after_seconds=0)
        (given,) = db.claim()
        run = given["run"]
        assert run["awaits_upload"] is awaits


def test_lease_renewal_returns_the_age_of_the_launch(db: Database) -> None:
    run, _, _ = db.running_run()
    (news,) = db.call("renew_training_runs", [{"run_id": str(run["id"]), "lease_token": str(run["lease_token"])}], 60)
    assert 3600 <= news["posted_seconds_ago"] < 3700


def test_artifact_names_the_dataset_of_the_launch(db: Database) -> None:
    run = db.claimed_run()
    trained_on = db.job(run["job_id"])["dataset_id"]
    token = begun(db, run, dataset_id=str(trained_on))
    db.call("check_in_run", token, "ext", str(uuid4()))
    other = db.dataset(run["user_id"])  # type: ignore[arg-type]
    db.rows("update training_jobs set dataset_id = %s, hyperparameters = '{\"epochs\": 9}',"
            " gpu_config = '{\"type\": \"L4\"}' where id = %s", other, run["job_id"])  # fmt: skip
    db.expire(run["id"])
    (adopted,) = db.call("adopt_training_runs", "w2", 1, 60)
    assert adopted["dataset"]["id"] == adopted["job"]["dataset_id"] == str(trained_on)
    job = adopted["job"]
    assert (job["hyperparameters"]["epochs"], job["gpu_config"]["type"]) == (2, "H100")
    assert db.settle(adopted["run"]) == "completed"
    assert db.row("select dataset_id from model_artifacts")["dataset_id"] == trained_on


def test_model_is_stored_although_its_dataset_was_deleted(db: Database) -> None:
    run = db.claimed_run()
    begun(db, run, dataset_id=str(uuid4()))
    assert db.settle(run) == "completed"
    assert db.row("select dataset_id from model_artifacts")["dataset_id"] == db.job(run["job_id"])["dataset_id"]


@pytest.mark.parametrize("metrics", ['"text"', "[1, 2]", "7"])
def test_invalid_current_metrics_do_not_grow_with_each_report(db: Database, metrics: str) -> None:
    run, _ = running(db)
    db.rows("update training_jobs set current_metrics = %s where id = %s", metrics, run["job_id"])
    for _ in range(3):
        assert db.call("record_progress", [report(run, current_metrics={"training_loss": 1.5})])[0]["applied"]
    assert db.job(run["job_id"])["current_metrics"] == {"training_loss": 1.5}
    db.call("record_progress", [report(run, current_metrics=["a"])])
    assert db.job(run["job_id"])["current_metrics"] == {"training_loss": 1.5}


def test_settling_while_a_superseded_launch_closes_bills_both(db: Database, database: str) -> None:
    run, token, _ = db.running_run()
    db.call("check_in_run", token, "loser", str(uuid4()))
    other = Database(database)
    try:
        with db.connection.transaction():
            db.settle(run, gpu_seconds=360)
            with other.connection.cursor() as cursor:
                cursor.execute("set lock_timeout = '200ms'")
                with pytest.raises(Exception, match="lock timeout"):
                    other.call("close_launches", [{"external_job_id": "loser", "gpu_seconds": 36}])
        assert other.call("close_launches", [{"external_job_id": "loser", "gpu_seconds": 36}]) == 1
    finally:
        other.close()
    assert [cost["details"]["gpu_seconds"] for cost in costs(db, run)] == [396]
