"""No log, row or RunPod job contains a key, a signed URL, or text of a dataset."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from sandbox.processes import free_ports
from sandbox.runpod import LocalRunPod
from tests.application.user import DATASET_WORD, LINE
from tests.handlers.leaky_training import Ending
from tests.integration.conftest import LEAKED_TOKEN
from tests.processes.collector import Collector
from tests.processes.stage import Stage
from tests.processes.waiting import awaited

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


def assert_shows_no_secret(stage: Stage, text: str, *more: str) -> None:
    keys = (stage.project.secret_key, stage.project.publishable_key, stage.runpod.api_key)
    for number, secret in enumerate((*keys, DATASET_WORD, *_OF_SIGNED_URLS, *more)):
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


def pages(stage: Stage, *paths: str) -> str:
    """The dashboard's pages, as an operator's browser gets them."""
    command = [sys.executable, "-m", "lora_worker.commands.cli", "dashboard", "--port", "0", "--json"]
    environment = stage.environment(LORA_WORKER_DASHBOARD_TOKEN="t" * 40)
    with subprocess.Popen(command, env=environment, cwd=stage.folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = httpx.URL(json.loads(process.stdout.readline())["url"]).copy_with(query=None)
            with httpx.Client(base_url=url, follow_redirects=True, timeout=60) as browser:
                browser.get("/", params={"token": "t" * 40}).raise_for_status()
                return "".join(browser.get(path).raise_for_status().text for path in paths)
        finally:
            process.terminate()


def test_what_a_training_prints_leaks_nowhere(
    stage_with: Callable[..., Stage], leaky_gpu: tuple[LocalRunPod, Path]
) -> None:
    stage, (port,) = stage_with(*leaky_gpu), free_ports(1)
    rest = {"LORA_WORKER_RUNPOD_API_URL": stage.runpod.rest_url}
    with Collector() as collector:
        raised, killed = (stage.user.queue(max_steps=5, seed=int(seed)) for seed in (Ending.RAISED, Ending.NO_HANDLER))
        worker = stage.worker(
            LORA_WORKER_LOG_LEVEL="debug", LORA_WORKER_MAX_ATTEMPTS="1", LORA_WORKER_HTTP_PORT=str(port),
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **rest,
        )  # fmt: skip
        first, second = (f"{stage.user.user_id}/{stage.first_run_ended(job)['id']}/log.txt" for job in (raised, killed))
        kept = [awaited(lambda path=path: stage.user.stored(path), "the log is kept") for path in (first, second)]
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
        assert stage.stop(worker) == 0
        traces = b"".join(collector.bodies).decode(errors="replace")
    (run, *_) = stage.runs(raised)
    shown = [stage.command(*words, **rest).stdout for words in (["logs", raised], ["show", raised], ["jobs", "--json"])]
    log_page = f"/jobs/{raised}/runs/{run['id']}/log"
    texts = [log.decode() for log in kept]
    for text in (*texts, shown[0]):
        assert "with [secret] it goes on" in text
    everything = [
        everything_written(stage), stage.runpod.logs(), json.dumps(stage.at_runpod(run["external_job_id"])), metrics,
        traces, *texts, *shown, pages(stage, "/", "/jobs", f"/jobs/{raised}", log_page, "/spend", "/workers"),
    ]  # fmt: skip
    for text in everything:
        assert_shows_no_secret(stage, text, LEAKED_TOKEN, "token=abc")


def test_gpu_workers_log_contains_no_secret(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=5)
    stage.worker()
    stage.ended(job_id)
    assert stage.runpod.logs()
    assert_shows_no_secret(stage, stage.runpod.logs())
