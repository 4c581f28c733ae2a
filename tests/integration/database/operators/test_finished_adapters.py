"""What an endpoint has to have room for is counted of finished jobs, and of nothing else."""

from __future__ import annotations

import json
from typing import Any

from tests.application.pipeline import Pipeline
from tests.database.rows import Database, outcome


def finished_run(db: Database, base_model: str, **hyperparameters: Any) -> dict[str, Any]:
    run, _, _ = db.running_run()
    db.rows(
        "update training_runs set base_model = %s, launched_with = launched_with || %s::jsonb where id = %s",
        base_model, json.dumps({"hyperparameters": hyperparameters}), run["id"],
    )  # fmt: skip
    db.settle(run)
    return db.run(run["id"])


def test_finished_adapters_are_counted_by_base_rank_and_dora(db: Database) -> None:
    assert db.call("training_finished_adapters") == []
    finished_run(db, "org/a", rank=16)
    finished_run(db, "org/a", lora_rank=16, rank="many")
    finished_run(db, "org/a", rank=64, use_dora=True)
    finished_run(db, "org/b")
    db.running_run()
    deleted = finished_run(db, "org/b")
    db.rows("update model_artifacts set deleted_at = now() where job_id = %s", deleted["job_id"])
    assert db.call("training_finished_adapters") == [
        {"base_model": "org/a", "rank": 16, "use_dora": False, "adapters": 2},
        {"base_model": "org/a", "rank": 64, "use_dora": True, "adapters": 1},
        {"base_model": "org/b", "rank": 16, "use_dora": False, "adapters": 1},
    ]


def test_model_whose_row_is_gone_counts_no_more(db: Database) -> None:
    removed = finished_run(db, "org/a")
    db.rows("update training_jobs set artifact_id = null")
    db.rows("delete from model_artifacts where id = %s", removed["id"])
    assert db.call("training_finished_adapters") == []


def test_newer_queues_deleted_adapter_counts_no_more(db: Database, pipeline: Pipeline) -> None:
    user = db.user()
    pipeline.queue(user_id=user, dataset_id=db.dataset(user))
    run = db.claim()[0]["run"]
    db.begin(run, "t" * 64)
    db.rows("update training_runs set base_model = 'org/a'")
    made = outcome("completed")
    made["artifact"]["archive"] = "lora-models/adapters/x.tar.gz"
    assert db.call("settle_run", run["id"], run["lease_token"], made) == "completed"
    assert [found["adapters"] for found in db.call("training_finished_adapters")] == [1]
    db.rows("alter table pipeline_training_jobs add column if not exists adapter_status text default 'active'")
    db.rows("update pipeline_training_jobs set adapter_status = 'deleted'")
    assert db.call("training_finished_adapters") == []
