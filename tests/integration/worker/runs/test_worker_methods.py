"""A job of each method, and one that begins with an earlier adapter, from both queues to rows and notices.

The training is a stand-in, which reads the earlier adapter's files as the training would. `test_served_adapters.py` has
such jobs with real trainings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from sandbox.standin_evaluation import FIGURES
from sandbox.supabase.project import Project
from tests.application.pipeline import Pipeline
from tests.application.user import BASE_MODEL, DATASET_WORD, ENDED, User
from tests.database.rows import Database, Row
from tests.processes.stage import Stage
from tests.processes.waiting import awaited


def lines(*values: Any) -> bytes:
    return "\n".join(map(json.dumps, values)).encode()


PAIRS = lines(
    *({"prompt": f"{DATASET_WORD} {n}", "chosen": f"{DATASET_WORD}, yes", "rejected": "No."} for n in range(4))
)
THUMBS = lines(
    *({"prompt": f"{DATASET_WORD} {n}", "completion": f"{DATASET_WORD}.", "label": n % 2 == 0} for n in range(4))
)


@pytest.fixture
def pipeline(empty_supabase: Project) -> Iterator[Pipeline]:
    database = Database(empty_supabase.database_url)
    made = Pipeline(database)
    made.create()
    yield made
    made.remove()
    database.close()


@pytest.fixture
def both_queues(pipeline: Pipeline, stage: Stage) -> Stage:
    """A stage whose newer queue exists before its worker starts, and is dropped after it."""
    return stage


def model_of(stage: Stage, job_id: str) -> Row:
    return stage.database.row("select * from model_artifacts where job_id = %s", job_id)


def newer_job(pipeline: Pipeline, job_id: UUID) -> Row:
    """The job of the newer queue, as soon as it has ended."""
    return awaited(lambda: pipeline.job(job_id), "the newer job ends", fits=lambda row: row["status"] in ENDED)


def test_each_method_ends_in_rows_and_notices_of_its_kind(both_queues: Stage, pipeline: Pipeline) -> None:
    stage = both_queues
    sft = stage.user.queue(max_steps=5)
    dpo = stage.user.queue(stage.user.upload(PAIRS), method="dpo", beta=0.2, max_steps=5)
    kto = stage.user.queue(stage.user.upload(THUMBS), method="kto", max_steps=5)
    wrong = stage.user.queue(method="kto", max_steps=5)
    newer = {
        method: pipeline.queue(
            user_id=stage.user.user_id,
            dataset_id=dataset_id,
            engine_features=json.dumps({"training": {"method": method, "max_steps": 5}}),
        )
        for method, dataset_id in (
            ("sft", stage.user.upload()),
            ("dpo", stage.user.upload(PAIRS)),
            ("kto", stage.user.upload(THUMBS)),
        )
    }
    stage.worker()
    for job_id, method in ((sft, "sft"), (dpo, "dpo"), (kto, "kto")):
        job = stage.ended(job_id)
        assert (job["status"], job["error_message"]) == ("completed", None)
        model = model_of(stage, job_id)
        assert (model["training_summary"]["method"], model["parent_model_id"]) == (method, None)
        assert stage.user.notices(job_id) == ["artifact_ready", "job_completed", "job_started"]
        has_rewards = method != "sft"
        assert ({"reward_margin", "reward_accuracy"} <= job["current_metrics"].keys()) == has_rewards
        assert ({"reward_margin", "reward_accuracy"} <= model["quality_metrics"].keys()) == has_rewards
        assert model["quality_metrics"]["held_out_gain"] == FIGURES["held_out"]["gain"]
    assert stage.user.job(dpo)["hyperparameters"]["beta"] == 0.2
    assert model_of(stage, sft)["quality_metrics"]["overall_score"] == 5
    (message,) = stage.database.rows(
        "select message from notifications where type = 'job_completed' and metadata->>'job_id' = %s", sft
    )
    assert "On 34 held-out conversations the loss fell from 2.31 to 1.62" in message["message"]
    # The accuracy of the stand-in ends at 1.
    assert model_of(stage, dpo)["quality_metrics"]["convergence_quality"] == "excellent"

    job = stage.ended(wrong)
    assert job["status"] == "failed"
    assert "has no thumb on an answer" in job["error_message"]
    assert stage.launches(wrong) == []
    assert stage.user.notices(wrong) == ["job_failed"]

    for method, job_id in newer.items():
        job = newer_job(pipeline, job_id)
        assert (job["status"], job["error_message"]) == ("completed", None)
        metrics = stage.database.rows("select metric_id from pipeline_training_metrics where job_id = %s", job_id)
        names = {row["metric_id"] for row in metrics}
        assert {"training_loss", "held_out_gain", "tuned_validation_loss", "overall_score"} <= names
        assert ({"reward_margin", "reward_accuracy"} <= names) == (method != "sft")


def test_training_begins_with_an_adapter_of_its_own_user_only(both_queues: Stage, pipeline: Pipeline) -> None:
    stage = both_queues
    first = stage.user.queue(max_steps=5)
    stage.worker()
    parent = str(stage.ended(first)["artifact_id"])
    stranger = User(stage.project, stage.folder)
    by_model = stage.user.queue(init_adapter=parent, max_steps=5)
    by_job = stage.user.queue(stage.user.upload(PAIRS), method="dpo", parent_model_id=first, max_steps=5)
    foreign = stranger.queue(init_adapter=parent, max_steps=5)
    newer = pipeline.queue(
        user_id=stage.user.user_id,
        dataset_id=stage.user.upload(),
        engine_features=json.dumps({"training": {"init_adapter": first, "max_steps": 5}}),
    )
    for job_id in (by_model, by_job):
        job = stage.ended(job_id)
        assert (job["status"], job["error_message"]) == ("completed", None)
        model = model_of(stage, job_id)
        assert str(model["parent_model_id"]) == model["training_summary"]["init_adapter"] == parent
        assert model["training_summary"]["notes"] == []
    job = awaited(lambda: stranger.job(foreign), "the stranger's job ends", fits=lambda row: row["status"] in ENDED)
    assert job["status"] == "failed"
    assert job["error_message"].startswith("hyperparameters: init_adapter: you have no adapter")
    assert stage.launches(foreign) == []
    stranger.close()
    ended = newer_job(pipeline, newer)
    assert (ended["status"], ended["error_message"]) == ("completed", None)
    (run,) = stage.database.rows("select * from training_runs where job_id = %s", UUID(str(newer)))
    assert run["launched_with"]["init_adapter"] == {"id": parent}
    assert run["launched_with"]["needs_proof"] is True
    manifest = json.loads(stage.user.stored(f"{stage.user.user_id}/{run['id']}/manifest.json") or b"{}")
    listed = {file["path"]: file["sha256"] for file in manifest["files"]}
    assert manifest["application"]["adapter_sha256"] == listed["adapter_model.safetensors"]
    assert manifest["summary"]["init_adapter"] == parent
    assert manifest["summary"]["base_model"] == BASE_MODEL
    # Nothing that a worker wrote shows an address or a token.
    assert "token=" not in stage.log()
