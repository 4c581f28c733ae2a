"""What worker and trainer show of a run that two workers have after each other: traces, log, metrics and notices."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from uuid import UUID

import httpx
import pytest

from sandbox.processes import free_ports
from tests.application.user import DATASET_WORD
from tests.processes.collector import CollectedSpan, Collector
from tests.processes.stage import Stage
from tests.processes.waiting import until
from tests.unit.worker.observability.test_outbox import Webhook

OF_WORKERS = {"claim", "preflight", "launch", "adopt", "queue", "settle", "run"}
OF_TRAINER = {"download", "prepare", "train", "upload", "execution"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as one:
        yield one


def metrics(port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text


def test_trace_log_metrics_and_notice_of_an_adopted_run(stage: Stage, collector: Collector) -> None:
    with Webhook() as hook:
        (port,) = free_ports(1)
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "LORA_WORKER_HTTP_PORT": str(port),
            "LORA_WORKER_NOTIFY_URLS": hook.url,
            # Jobs of earlier tests may be held in this project.
            "LORA_WORKER_NOTIFY_ABOUT": "job_failed,job_ended",
        }
        stage.runpod.replace_workers({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
        first = stage.worker(**variables)
        job_id = stage.user.queue(max_steps=60)
        stage.training(job_id, step=2)
        (run,) = stage.runs(job_id)
        series = f'lora_worker_run_step{{job_id="{job_id}",run_id="{run["id"]}"}}'
        until(lambda: series in metrics(port), "the run has its series", state=stage.log)
        until(lambda: "launch" in {span.name for span in collector.spans}, "its launch is collected", state=stage.log)
        stage.kill(first)
        second = stage.worker(**variables)
        assert stage.ended(job_id)["status"] == "completed"

        told = hook.next()
        assert told["title"] == "Training job completed"
        assert job_id in told["message"]
        page = metrics(port)
        assert series not in page
        assert 'lora_worker_settled_total{error_code="none",job_status="completed"} 1.0' in page
        assert stage.stop(second) == 0
        assert hook.received.empty()
    _check_trace(collector.spans, str(run["id"]))
    _check_log(stage.log(), str(run["id"]), job_id)
    _check_secrets(stage, b"".join(collector.bodies).decode(errors="replace") + page + str(told))


def test_hanging_collector_and_receiver_hold_up_neither_run_nor_stop(stage: Stage, collector: Collector) -> None:
    with Webhook() as hook:
        collector.may_answer.clear()
        hook.may_answer.clear()
        stage.runpod.replace_workers({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
        worker = stage.worker(
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="200", LORA_WORKER_NOTIFY_URLS=hook.url
        )
        first, second = (stage.user.queue(max_steps=5) for _ in range(2))
        assert [stage.ended(job)["status"] for job in (first, second)] == ["completed", "completed"]
        assert collector.is_asked.is_set()
        # Both would hold a process that waited for them for longer than the test has patience.
        assert stage.stop(worker) == 0
        assert not hook.may_answer.is_set()
    assert "Traceback" not in stage.log()


def test_single_pass_tells_what_it_came_to_before_it_ends(stage: Stage) -> None:
    with Webhook() as hook:
        job_id = stage.user.queue(rank=-1)
        stage.one_pass(LORA_WORKER_NOTIFY_URLS=hook.url, LORA_WORKER_NOTIFY_ABOUT="job_ended")
        told = hook.next()
    assert told["title"] == "Training job failed (hyperparameters_invalid)"
    assert job_id in told["message"]


def _check_trace(spans: list[CollectedSpan], run_id: str) -> None:
    """All spans of the run are one tree below its root, whoever recorded them."""
    own = [span for span in spans if span.attributes.get("lora.run_id") == run_id]
    assert {span.trace_id for span in own} == {UUID(run_id).hex}
    assert {span.name for span in own} >= OF_WORKERS | OF_TRAINER
    by_service = {name: {span.name for span in own if span.service == name} for name in ("lora-worker", "lora-trainer")}
    assert by_service["lora-worker"] == OF_WORKERS
    assert by_service["lora-trainer"] >= OF_TRAINER
    (root,) = (span for span in own if span.name == "run")
    (execution,) = (span for span in own if span.name == "execution")
    assert root.parent_id == ""
    for span in own:
        if span is not root:
            below = execution if span.service == "lora-trainer" and span is not execution else root
            assert span.parent_id == below.span_id, span
        assert span.began_at <= span.ended_at
    workers = {span.name: span.attributes["lora.worker_id"] for span in own if span.service == "lora-worker"}
    # The first worker launched it, and the second one settled it, in the same trace.
    assert workers["claim"] == workers["launch"] != workers["adopt"] == workers["run"]
    assert root.attributes["lora.job_status"] == "completed"


def _check_log(text: str, run_id: str, job_id: str) -> None:
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert all(re.fullmatch(r"[a-z_]+\.[a-z_]+", line["action"]) for line in lines)
    assert all(line["worker_id"] for line in lines)
    about_run = [line for line in lines if line["action"].startswith(("run.", "launch.", "upload."))]
    assert {"run.claimed", "launch.accepted", "run.adopted", "upload.granted", "run.settled"} <= {
        line["action"] for line in about_run
    }
    assert {(line["run_id"], line["job_id"]) for line in about_run} == {(run_id, job_id)}
    # A notice is sent by another thread, and its line has the ids all the same.
    (sent,) = (line for line in lines if line["action"] == "notice.sent")
    assert (sent["run_id"], sent["job_id"]) == (run_id, job_id)


def _check_secrets(stage: Stage, shown: str) -> None:
    keys = (stage.project.secret_key, stage.project.publishable_key, stage.runpod.api_key)
    for number, secret in enumerate((*keys, DATASET_WORD, "token=", "/hook-of-ops")):
        # A failed assertion must not print the secret, either.
        assert (number, secret in shown + stage.log()) == (number, False)
