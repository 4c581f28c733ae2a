"""No log, row or RunPod job contains a key, a signed URL, or text of a dataset."""

from __future__ import annotations

import json

import pytest

from tests.application.user import DATASET_WORD, LINE
from tests.processes.stage import Stage

_TABLES = (
    "training_jobs",
    "training_runs",
    "training_launches",
    "metrics_points",
    "model_artifacts",
    "cost_records",
    "notifications",
)
_OF_SIGNED_URLS = ("token=", "/object/sign/", "/object/upload/sign/")


def everything_written(stage: Stage) -> str:
    rows = [json.dumps(stage.database.rows(f"select * from {table}"), default=str) for table in _TABLES]
    return "".join([stage.log(), *rows])


def assert_shows_no_secret(stage: Stage, text: str) -> None:
    keys = (stage.project.secret_key, stage.project.publishable_key, stage.runpod.api_key)
    for number, secret in enumerate((*keys, DATASET_WORD, *_OF_SIGNED_URLS)):
        # A failed assertion must not print the secret, either.
        if secret in text:
            pytest.fail(f"secret number {number} was written")


def test_no_key_token_or_dataset_text_is_logged_or_stored(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=5)
    stage.worker(LORA_WORKER_LOG_LEVEL="debug")
    job = stage.ended(job_id)
    assert job["status"] == "completed"
    assert_shows_no_secret(stage, everything_written(stage) + json.dumps(stage.at_runpod(job["external_job_id"])))


def test_refused_dataset_is_not_quoted(stage: Stage) -> None:
    broken = b"\n".join([LINE, b'{"messages": [{"role": "' + DATASET_WORD.encode() + b'", "content": 7}'] * 4)
    job_id = stage.user.queue(stage.user.upload(broken))
    stage.worker(LORA_WORKER_LOG_LEVEL="debug")
    assert stage.ended(job_id)["status"] == "failed"
    assert_shows_no_secret(stage, everything_written(stage))


def test_gpu_workers_log_contains_no_secret(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=5)
    stage.worker()
    stage.ended(job_id)
    assert stage.runpod.logs()
    assert_shows_no_secret(stage, stage.runpod.logs())
