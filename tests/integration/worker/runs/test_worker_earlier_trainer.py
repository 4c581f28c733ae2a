"""An endpoint whose image holds the earlier trainer: its answers are understood and its files are copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from sandbox.runpod import LocalRunPod
from sandbox.supabase.project import Project
from tests.processes.serving import serving
from tests.processes.stage import Stage

_CONTENT = bytes(range(256)) * 20_000
"""Larger than one chunk."""


class _Files(BaseHTTPRequestHandler):
    """Serves every file completely."""

    sent = len(_CONTENT)
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200)
        self.send_header("content-length", str(len(_CONTENT)))
        self.end_headers()
        self.wfile.write(_CONTENT[: self.sent])

    def log_message(self, *_: Any) -> None:
        pass


class _BrokenFiles(_Files):
    """Breaks off in the middle of every file."""

    sent = len(_CONTENT) // 2


@pytest.fixture
def earlier_stage(empty_supabase: Project, tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Makes a stage with the earlier trainer: `earlier_stage(its environment)`."""
    with ExitStack() as stack:

        def start(**env: str) -> Stage:
            runpod = LocalRunPod.start(
                handler_module="tests.handlers.earlier_trainer", workers_max=1, rate_limits={}, env=env
            )
            stack.callback(runpod.stop)
            stage = Stage(empty_supabase, runpod, tmp_path)
            stack.callback(stage.close)
            return stage

        yield start


def switched_on(url: str, **more: str) -> dict[str, str]:
    """Settings of a worker that fetches from this server, and from no other address of this machine."""
    hosts = url.removeprefix("http://")
    return {"LORA_WORKER_EARLIER_TRAINER": "true", "LORA_WORKER_EARLIER_TRAINER_HOSTS": hosts, **more}


def test_earlier_trainers_files_are_copied_and_complete_the_job(earlier_stage: Callable[..., Stage]) -> None:
    with serving(_Files) as url:
        stage = earlier_stage(EARLIER_FILES_URL=url)
        job_id = stage.user.queue()
        stage.worker(**switched_on(url))
        assert stage.ended(job_id)["status"] == "completed"
    artifact = stage.user.artifact(job_id)
    assert stage.user.stored(artifact["artifacts"]["adapter_model.safetensors"]) == _CONTENT
    assert set(artifact["artifacts"]) == {"adapter_model.safetensors", "adapter_config.json", "manifest.json"}
    assert artifact["quality_metrics"]["final_training_loss"] == 0.725
    assert stage.user.notices(job_id) == ["artifact_ready", "job_completed", "job_started"]


def test_interrupted_file_copy_fails_only_its_own_attempt(earlier_stage: Callable[..., Stage]) -> None:
    with serving(_BrokenFiles) as url:
        stage = earlier_stage(EARLIER_FILES_URL=url)
        job_id = stage.user.queue()
        stage.worker(**switched_on(url, LORA_WORKER_MAX_ATTEMPTS="2"))
        job = stage.ended(job_id)
    assert job["status"] == "failed"
    assert "http" not in job["error_message"]
    assert [run["error_code"] for run in stage.runs(job_id)] == ["artifact_missing", "artifact_missing"]


def test_files_are_not_fetched_unless_the_setting_allows_it(earlier_stage: Callable[..., Stage]) -> None:
    _Files.asked = 0
    with serving(_Files) as url:
        stage = earlier_stage(EARLIER_FILES_URL=url)
        job_id = stage.user.queue()
        stage.worker()
        job = stage.ended(job_id)
    assert (job["status"], _Files.asked) == ("failed", 0)
    assert "an earlier program, whose files this service does not fetch" in job["error_message"]
    assert "LORA_WORKER_EARLIER_TRAINER=true" in stage.log()
    assert len(stage.runs(job_id)) == 1


def test_files_are_not_fetched_from_the_private_network(earlier_stage: Callable[..., Stage]) -> None:
    _Files.asked = 0
    with serving(_Files) as url:
        stage = earlier_stage(EARLIER_FILES_URL=url)
        job_id = stage.user.queue()
        stage.worker(LORA_WORKER_EARLIER_TRAINER="true", LORA_WORKER_MAX_ATTEMPTS="1")
        job = stage.ended(job_id)
    assert (job["status"], _Files.asked) == ("failed", 0)
    assert "is not an https address" in job["error_message"]


def test_failure_inside_a_completed_answer_fails_the_job(earlier_stage: Callable[..., Stage]) -> None:
    stage = earlier_stage()
    job_id = stage.user.queue()
    stage.worker()
    job = stage.ended(job_id)
    assert (job["status"], job["error_message"]) == ("failed", "CUDA out of memory")
    assert job["error_stack"] is None
