"""A self-hosted project with its defaults: short-lived upload URLs, and a size limit below the buckets'."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sandbox.runpod import LocalRunPod
from sandbox.standin import standin_env
from sandbox.supabase import LocalSupabase
from tests.conftest import SANDBOX
from tests.processes.stage import Stage


@pytest.fixture
def self_hosted(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Makes a stage on a project with its own storage rules: `self_hosted(GPUs' environment, **rules)`."""
    with ExitStack() as stack:

        def start(env: dict[str, str], **rules: int) -> Stage:
            volume = tmp_path / "volume"
            project = stack.enter_context(LocalSupabase.start(SANDBOX, **rules))
            env = {**standin_env(volume, step_seconds=0.02), **env}
            runpod = LocalRunPod.start(workers_max=1, env=env, rate_limits={})
            stack.callback(runpod.stop)
            stage = Stage(project, runpod, tmp_path, volume)
            stack.callback(stage.close)
            return stage

        yield start


def test_upload_urls_that_expire_between_files_are_renewed(self_hosted: Callable[..., Stage]) -> None:
    stage = self_hosted({"LORA_CRASH": "trainer.upload.before_manifest=sleep:6"}, upload_url_seconds=5)
    job_id = stage.user.queue(max_steps=5)
    stage.worker()
    assert stage.ended(job_id)["status"] == "completed"
    assert len(stage.runs(job_id)) == 1
    assert stage.log().count("upload granted") >= 2
    assert len(stage.steps(job_id)) == 5


def test_too_small_project_limit_holds_launches_and_fails_no_job(self_hosted: Callable[..., Stage]) -> None:
    stage = self_hosted({}, file_size_limit=50 * 1024**2)
    job_id = stage.user.queue(max_steps=5)
    stage.worker()
    job = stage.until(job_id, lambda row: row["current_stage"] == "waiting_for_storage", "the storage is waited for")
    assert (job["status"], job["error_message"]) == ("initializing", None)
    assert stage.launches(job_id) == []
    assert "the project takes no file of 1024 MB" in stage.log()
