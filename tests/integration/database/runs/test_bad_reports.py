"""A report that fits no column fails alone, and the trainer's limits are the database's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lora_contract.protocol import MAX_FILES, MAX_UPLOAD_REQUEST_BYTES, Manifest
from lora_worker.database.caller import storable_json
from lora_worker.runs.state.held_run import HeldRun
from lora_worker.runs.steps.settling import _success
from tests.application.pipeline import Pipeline
from tests.database.rows import Database, Row, point, report
from tests.scripted import assignment, make_services

BAD = [
    {"current_step": 3_000_000_000},
    {"current_step": "many"},
    {"progress": "Infinity"},
    {"progress": 1e300},
    {"current_metrics": {"training_loss": "x"}, "total_steps": []},
    {"estimated_completion_at": "tomorrow, perhaps"},
    {"current_stage": "s" * 1000},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_invalid_report_does_not_block_other_runs_reports(db: Database, bad: Row) -> None:
    runs = [db.running_run()[0] for _ in range(3)]
    reports = [report(run, [point(1)], progress=40, current_step=7) for run in runs]
    reports[1]["job"] |= bad
    answers = {answer["run_id"]: answer for answer in db.call("record_progress", reports)}
    assert all(answer["applied"] for answer in answers.values())
    refused = [answers[str(run["id"])]["refused"] is not None for run in runs]
    assert refused == [False, True, False]
    assert [db.job(run["job_id"])["current_step"] for run in runs] == [7, 0, 7]
    # A refused report is not partly written.
    assert [row["count"] for run in runs for row in db.rows(
        "select count(*) from metrics_points where job_id = %s", run["job_id"])] == [1, 0, 1]  # fmt: skip


@pytest.mark.parametrize("points", [[{"step": "x"}], [{"step": 1}], [{**point(1), "timestamp": "1e30"}]], ids=str)
def test_points_that_do_not_fit_a_row_refuse_only_their_own_report(db: Database, points: list[Row]) -> None:
    good, bad = db.running_run()[0], db.running_run()[0]
    answers = db.call("record_progress", [report(good, [point(1)]), report(bad, points)])
    assert {answer["run_id"]: answer["refused"] is None for answer in answers} == {
        str(good["id"]): True,
        str(bad["id"]): False,
    }


def test_invalid_report_of_the_newer_queue_blocks_no_other_run(db: Database, pipeline: Pipeline) -> None:
    good, _, _ = db.running_run()
    user = db.user()
    pipeline.queue(user_id=user, dataset_id=db.dataset(user))
    (given,) = db.claim()
    token = "t" * 64
    db.begin(given["run"], token)
    db.call("check_in_run", token, "ext", "00000000-0000-0000-0000-000000000001")
    reports = [report(good, progress=40), report(given["run"], current_metrics={"training_loss": "x"})]
    answers = {answer["run_id"]: answer["refused"] for answer in db.call("record_progress", reports)}
    assert answers[str(good["id"])] is None
    assert answers[given["run"]["id"]] is not None
    assert float(db.job(good["job_id"])["progress"]) == 40


def test_transient_error_is_not_recorded_as_a_refused_report(db: Database, database: str) -> None:
    run, _, _ = db.running_run()
    other = Database(database)
    try:
        with db.connection.transaction():
            db.rows("select 1 from training_jobs where id = %s for update", run["job_id"])
            other.rows("set lock_timeout = '100ms'")
            with pytest.raises(Exception, match="lock timeout"):
                other.call("record_progress", [report(run, progress=40)])
    finally:
        other.close()


def test_database_accepts_as_many_files_as_the_trainer_publishes(db: Database) -> None:
    _, token, execution = db.running_run()

    def entries(count: int, letters: int = 1) -> list[dict[str, Any]]:
        return [{"name": "n" * letters, "path": f"{number}", "bytes": 1, "sha256": "0" * 64} for number in range(count)]

    assert db.call("request_upload", token, execution, entries(MAX_FILES))["ok"]
    with pytest.raises(Exception, match="files"):
        db.call("request_upload", token, execution, entries(MAX_FILES + 1))
    # As the database writes them.
    longest = max(
        letters for letters in range(1, 401) if len(json.dumps(entries(MAX_FILES, letters))) <= MAX_UPLOAD_REQUEST_BYTES
    )
    assert db.call("request_upload", token, execution, entries(MAX_FILES, longest))["ok"]
    with pytest.raises(Exception, match="files"):
        db.call("request_upload", token, execution, entries(MAX_FILES, longest + 1))


@pytest.mark.parametrize(
    "numbers",
    [
        {"summary": {"execution_seconds": "Infinity"}},
        {"summary": {"execution_seconds": 10_000_000.0}},
        {"summary": {"total_steps": 3_000_000_000}},
        {"points": [{"step": 1, "epoch": 1, "training_loss": 2.0, "timestamp": 1e30}]},
        {"summary": {"epochs_completed": 1e300}},
        {"summary": {"train_seconds": "NaN"}},
        {"metrics": {"final_training_loss": 1e308, "final_validation_loss": float("inf")}},
        {"summary": {"notes": ["\x00\ud800"] * 100, "base_model": "b" * 100_000}},
    ],
    ids=lambda numbers: str(numbers)[:60],
)
def test_manifest_with_impossible_numbers_still_completes_its_run(db: Database, numbers: Row) -> None:
    run, _, _ = db.running_run()
    services = make_services()
    holding = HeldRun.take(services, assignment(), asked_at=services.clock())
    file = {"name": "a", "path": "a", "bytes": 1, "sha256": "0" * 64}
    manifest = Manifest.model_validate({"job_id": "j", "run_id": "r", "files": [file], **numbers})
    job = holding.assignment.job
    assert job is not None
    outcome = json.dumps(storable_json(_success(holding, manifest, job)), allow_nan=False)
    assert db.row("select settle_run(%s, %s, %s)", run["id"], run["lease_token"], outcome)["settle_run"] == "completed"
    assert db.row("select amount from cost_records")["amount"] <= 1
