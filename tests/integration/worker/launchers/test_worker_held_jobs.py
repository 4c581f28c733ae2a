"""A broken image costs one launch; then jobs wait, and continue when it is repaired."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.runpod import LocalRunPod
from sandbox.standin import standin_env
from tests.application.user import User
from tests.processes.stage import Stage
from tests.processes.waiting import until

_PACE = {"LORA_WORKER_MAX_START_SECONDS": "3", "LORA_WORKER_HOLD_SECONDS": "3600"}


@pytest.fixture
def broken() -> Iterator[LocalRunPod]:
    """An endpoint whose image lacks what its handler imports."""
    with LocalRunPod.start(handler_module="tests.handlers.fails_at_import", workers_max=1) as runpod:
        yield runpod


@pytest.fixture
def mended(broken: LocalRunPod, gpu_volume: Path) -> Iterator[LocalRunPod]:
    """The same account's endpoint with a working image."""
    with LocalRunPod.start(api_key=broken.api_key, env=standin_env(gpu_volume, step_seconds=0.02)) as runpod:
        yield runpod


def command(stage: Stage, name: str) -> str:
    """The output of `lora-worker <name>`."""
    done = stage.command(name)
    done.check_returncode()
    return done.stdout


def test_image_that_fails_at_import_is_stopped_and_reported(
    broken: LocalRunPod, mended: LocalRunPod, stage_with: Callable[..., Stage]
) -> None:
    stage = stage_with(broken)
    job_id = stage.user.queue()
    worker = stage.worker(**_PACE)
    stage.until(
        job_id,
        lambda row: row["status"] == "queued" and row["current_stage"] == "waiting_for_gpu",
        "it waits for a GPU",
    )
    (run,) = stage.runs(job_id)
    assert (run["status"], run["error_code"], run["fault"]) == ("failed", "gpu_never_ready", "infrastructure")
    assert "can't begin trainings" in stage.user.job(job_id)["error_message"]
    # Another user's job is not launched, so RunPod starts no workers for it.
    another = User(stage.project, stage.folder)
    held = another.queue()
    stage.until(
        job_id, lambda _: another.job(held)["current_stage"] == "waiting_for_gpu", "the other user's job is held"
    )
    assert stage.runs(held) == []
    assert broken.orphans() == []
    assert len(stage.launches(job_id)) == 1
    until(lambda: broken.workers() == {}, "the endpoint has no workers")
    assert "the image fails at its start" in stage.log()
    health = stage.database.row("select public.queue_health() as health")["health"]
    assert [breaker["kind"] for breaker in health["held"]["breakers"]] == ["image"]
    stage.stop(worker)
    # On a narrow terminal the table breaks its lines.
    output = " ".join(command(stage, "status").split())
    assert "held: 2 jobs, for the image" in output
    assert "2 jobs may go: the image" in command(stage, "resume")
    assert "nothing is held" in command(stage, "resume")
    # A cold start may take longer here than the broken image was given.
    stage.worker(GPU_CLUSTER_API_URL=mended.api_url, LORA_WORKER_HOLD_SECONDS=_PACE["LORA_WORKER_HOLD_SECONDS"])
    assert stage.ended(job_id)["status"] == "completed"
    stage.until(job_id, lambda _: another.job(held)["status"] == "completed", "the other user's job is completed")
    assert another.job(held)["error_message"] is None
    another.close()
