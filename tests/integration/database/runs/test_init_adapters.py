"""Which adapter an id means for a user, and whose child a model is that began with an earlier adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.application.pipeline import Pipeline
from tests.database.rows import H100, Database, Row


@pytest.fixture
def pipeline(db: Database) -> Iterator[Pipeline]:
    made = Pipeline(db)
    made.create()
    yield made
    made.remove()


def finished(db: Database, user: UUID) -> Row:
    """A run of the user that has published its adapter."""
    db.jobs(1, user)
    run = next(given["run"] for given in db.claim(max_jobs=9) if given["run"]["user_id"] == str(user))
    assert db.settle(run) == "completed"
    return run


def found(db: Database, user: UUID, named: Any) -> Row | None:
    return db.call("training_init_adapter", user, named)


def test_model_and_job_id_mean_the_same_adapter(db: Database) -> None:
    user = db.user()
    run = finished(db, user)
    answer = {"run_id": run["id"], "queue": "training_jobs", "job_id": run["job_id"], "model_id": run["id"]}
    for named in (run["id"], run["job_id"]):
        assert found(db, user, named) == {**answer, "status": "ready"}


def test_foreign_and_unknown_adapters_give_the_same_answer(db: Database) -> None:
    run, stranger = finished(db, db.user()), db.user()
    assert [found(db, stranger, named) for named in (run["id"], run["job_id"], uuid4())] == [None] * 3


def test_deleted_and_unfinished_adapters_say_what_they_are(db: Database) -> None:
    user = db.user()
    run = finished(db, user)
    db.rows("update model_artifacts set deleted_at = now() where id = %s", run["id"])
    assert [(found(db, user, run[key]) or {})["status"] for key in ("id", "job_id")] == ["deleted"] * 2
    (waiting,) = db.jobs(1, user)
    answer = found(db, user, waiting) or {}
    assert (answer["status"], answer["run_id"]) == ("queued", None)
    db.rows("update training_jobs set status = 'completed' where id = %s", waiting)
    assert (found(db, user, waiting) or {})["status"] == "foreign"


def test_adapter_of_the_newer_queue_is_named_by_its_job(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    job_id = pipeline.queue(user_id=user, dataset_id=db.dataset(user))
    (given,) = db.claim()
    assert db.settle(given["run"]) == "completed"
    assert found(db, user, job_id) == {
        "run_id": given["run"]["id"], "queue": "pipeline_training_jobs", "job_id": str(job_id), "model_id": None,
        "status": "ready",
    }  # fmt: skip
    assert found(db, db.user(), job_id) is None


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ('{"training": {"method": "dpo", "beta": 0.2, "epochs": 9}}', {"method": "dpo", "beta": 0.2}),
        ('{"training": {"method": "kto", "learning_rate": 1e-5}}', {"method": "kto", "learning_rate": 1e-5}),
        ('["empathy"]', {}),
        ('{"training": ["dpo"]}', {}),
        (None, {}),
    ],
)
def test_newer_queues_method_is_read_from_its_features(
    db: Database, pipeline: Pipeline, features: str | None, expected: Row
) -> None:
    user = db.user()
    pipeline.queue(user_id=user, dataset_id=db.dataset(user), engine_features=features)
    (given,) = db.claim()
    columns = {"learning_rate": 1e-4, "batch_size": 4, "epochs": 2, "rank": 16, "alpha": 32, "dropout": 0.05}
    assert given["job"]["hyperparameters"] == {**columns, **expected}
    assert given["unreadable"] is None


def test_features_that_are_too_large_are_named_and_not_read(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    large = f'{{"training": {{"method": "{"x" * 5000}"}}}}'
    pipeline.queue(user_id=user, dataset_id=db.dataset(user), engine_features=large)
    (given,) = db.claim()
    assert given["unreadable"] == "engine_features is larger than 4 KB"
    assert "method" not in given["job"]["hyperparameters"]


def test_parent_is_the_adapter_that_the_training_began_with(db: Database) -> None:
    user = db.user()
    first, newest = finished(db, user), finished(db, user)
    db.jobs(1, user)
    (given,) = db.claim()
    run, token = given["run"], uuid4().hex * 2
    sha256 = hashlib.sha256(token.encode()).hexdigest()
    launched_with = {**H100, "init_adapter": {"id": first["id"]}}
    assert db.call("begin_launch", run["id"], run["lease_token"], "runpod", sha256, launched_with, None)["may_launch"]
    assert db.settle(run) == "completed"
    row = db.row("select parent_model_id, dataset_id from model_artifacts where id = %s", run["id"])
    assert str(row["parent_model_id"]) == first["id"] != newest["id"]


def test_rewards_are_metrics_of_the_newer_queue(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    job_id = pipeline.queue(user_id=user, dataset_id=db.dataset(user))
    (given,) = db.claim()
    point = {"step": 1, "epoch": 1, "training_loss": 0.6, "learning_rate": 1e-4, "reward_margin": 0.4,
             "reward_accuracy": 0.75}  # fmt: skip
    assert db.settle(given["run"], points=[point], most_points=100) == "completed"
    rows = db.rows("select metric_id, value from pipeline_training_metrics where job_id = %s", job_id)
    kept = {row["metric_id"]: row["value"] for row in rows}
    assert (kept["reward_margin"], kept["reward_accuracy"]) == (0.4, 0.75)
