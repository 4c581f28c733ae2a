"""Versions of both queues are listed with their figures, by dataset and by parent, and nobody else's among them."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from lora_worker.database.functions import TRAINING_VERSIONS
from tests.application.pipeline import Pipeline
from tests.database.rows import Database, Row

FIGURES = {"overall_score": 4, "base_validation_loss": 2.5, "tuned_validation_loss": 1.5, "held_out_gain": 1.0}


def trained(db: Database, count: int = 1, user: UUID | None = None, **quality: Any) -> list[Row]:
    """Completed runs of as many jobs on one dataset."""
    db.jobs(count, user)
    runs = [assignment["run"] for assignment in db.claim(max_jobs=count)]
    for run in runs:
        assert db.settle(run) == "completed"
    db.rows(
        "update model_artifacts set quality_metrics = %s, training_summary = %s where id = any(%s)",
        json.dumps({**FIGURES, **quality}), json.dumps({"method": "dpo"}),
        [run["id"] for run in runs],
    )  # fmt: skip
    return runs


def piped(db: Database, pipeline: Pipeline, user: UUID, dataset: UUID) -> Row:
    """A completed run of the newer queue."""
    pipeline.queue(user_id=user, dataset_id=dataset)
    run: Row = db.claim()[0]["run"]
    assert db.settle(run) == "completed"
    return run


def listed(db: Database, **wanted: Any) -> list[Row]:
    rows = TRAINING_VERSIONS.answer.validate_python(db.call("training_versions", wanted))
    return [dict(row) for row in rows]


def ids(rows: list[Row]) -> set[str]:
    return {str(row["id"]) for row in rows}


def test_versions_of_a_dataset_are_found_by_any_of_their_ids(db: Database) -> None:
    first, second = trained(db, 2)
    (other,) = trained(db)
    dataset = db.job(first["job_id"])["dataset_id"]
    for named in (first["id"], second["job_id"], dataset):
        assert ids(listed(db, of=str(named))) == {first["id"], second["id"]}
    assert ids(listed(db)) == {first["id"], second["id"], other["id"]}
    assert ids(listed(db, user_id=str(other["user_id"]))) == {other["id"]}
    assert len(listed(db, limit=1)) == 1
    assert listed(db, of=str(uuid4())) == []
    newest_first = listed(db, of=str(dataset))
    for one in newest_first:
        assert [row["id"] for row in listed(db, of=str(one["job_id"]), limit=1)] == [one["id"]]
        assert [row["id"] for row in listed(db, of=str(one["id"]), limit=1)] == [one["id"]]
        assert listed(db, of=str(one["id"])) == newest_first
    newest = listed(db, of=first["id"])[0]
    assert (newest["version"], newest["method"], newest["dataset_name"]) == ("1.1.0", "dpo", "Zebras")
    assert newest["figures"] == FIGURES
    assert newest["measured"] is None
    db.rows('update training_runs set measured = \'{"serving_name": "adapter-1"}\'')
    assert listed(db, of=first["id"])[0]["measured"] == {"serving_name": "adapter-1"}


def test_versions_on_other_data_are_found_by_their_parent(db: Database) -> None:
    user = db.user()
    (parent,), (child,), (stranger,) = trained(db, 1, user), trained(db, 1, user), trained(db, 1, user)
    db.rows("update model_artifacts set parent_model_id = %s where id = %s", parent["id"], child["id"])
    # A circle, which only a hand in the database can make.
    db.rows("update model_artifacts set parent_model_id = %s where id = %s", child["id"], parent["id"])
    assert ids(listed(db, of=child["job_id"])) == ids(listed(db, of=parent["id"])) == {parent["id"], child["id"]}
    assert ids(listed(db, of=stranger["id"])) == {stranger["id"]}


def test_newer_queue_brings_its_figures_as_metrics(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    dataset = db.dataset(user)
    run = piped(db, pipeline, user, dataset)
    made = ("insert into pipeline_training_metrics (job_id, metric_id, metric_name, metric_level, value, measured_at)"
            " values (%s, %s, 'm', %s, %s, %s)")  # fmt: skip
    for metric, level, value, at in (
        ("held_out_gain", "universal", 0.25, "2026-01-01"),
        ("held_out_gain", "universal", 0.5, "2026-01-02"),
        ("held_out_gain", "domain", 9.0, "2026-01-03"),
        ("base_validation_loss", "universal", float("nan"), "2026-01-01"),
        ("training_loss", "universal", 1.0, "2026-01-01"),
    ):
        db.rows(made, run["job_id"], metric, level, value, at)
    (version,) = listed(db, of=str(dataset))
    assert (version["id"], version["run_id"], version["version"]) == (UUID(run["id"]), UUID(run["id"]), None)
    assert version["figures"] == {"held_out_gain": 0.5}
    assert version["method"] == "sft"
    pipeline_deleted = "update pipeline_training_jobs set adapter_status = 'deleted' where id = %s"
    db.rows(pipeline_deleted, run["job_id"])
    assert listed(db, of=str(dataset)) == []


def test_both_queues_share_a_dataset(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    (older,) = trained(db, 1, user)
    newer = piped(db, pipeline, user, db.job(older["job_id"])["dataset_id"])
    assert ids(listed(db, of=newer["job_id"])) == {older["id"], newer["id"]}


def test_deleted_and_failed_versions_are_left_out(db: Database) -> None:
    gone, kept = trained(db, 2)
    db.rows("update model_artifacts set deleted_at = now() where id = %s", gone["id"])
    run, _, _ = db.running_run()
    db.settle(run, "failed", fault="permanent")
    assert ids(listed(db)) == {kept["id"]}


def test_rows_that_anybody_wrote_are_cut_and_their_texts_are_no_figures(db: Database) -> None:
    (run,) = trained(db, 1, held_out_gain="much", overall_score=None, tuned_validation_loss=1e9)
    deep: Any = {}
    for _ in range(20):
        deep = {"a": deep}
    db.rows("update model_artifacts set version = repeat('x', 50), training_summary = %s", json.dumps(deep))
    db.rows("update training_runs set measured = %s", json.dumps(deep))
    (version,) = listed(db, of=run["id"])
    assert version["figures"] == {"base_validation_loss": 2.5}
    assert version["measured"] is None


def test_model_of_another_program_has_no_run(db: Database) -> None:
    user = db.user()
    (job,) = db.jobs(user=user)
    db.rows(
        "insert into model_artifacts (user_id, job_id, dataset_id, name, quality_metrics, training_summary,"
        " configuration, artifacts) select user_id, id, dataset_id, 'Other', '{}', '{}', '{}', '{}'"
        " from training_jobs where id = %s", job,
    )  # fmt: skip
    (version,) = listed(db, of=str(job))
    assert version["run_id"] is None
    assert version["figures"] == {}


@pytest.mark.parametrize("wrong", [{"of": "x"}, {"user_id": "1"}, {"limit": "many"}])
def test_filter_that_can_not_be_read_is_a_sentence(db: Database, wrong: Row) -> None:
    with pytest.raises(Exception, match="of and user_id are ids"):
        db.call("training_versions", wrong)
