"""The worker trains on a GPU machine of one's own, whose server may be killed at any time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.gpu_server import LocalGpuServer
from sandbox.runpod import LocalRunPod
from sandbox.standin import Mishap, standin_env
from tests.processes.stage import Stage
from tests.processes.waiting import until


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    folder = tmp_path / "gpu-volume"
    folder.mkdir()
    return folder


@pytest.fixture
def server(tmp_path: Path, volume: Path) -> Iterator[LocalGpuServer]:
    with LocalGpuServer(tmp_path / "gpu-server", standin_env(volume, step_seconds=0.05)) as made:
        yield made


@pytest.fixture
def own_stage(stage_with: Callable[..., Stage], gpus: LocalRunPod, volume: Path) -> Stage:
    """A stage whose steps are those of the GPU server; RunPod's endpoint is there, and must not be called."""
    return stage_with(gpus, volume)


def test_job_is_trained_billed_and_published_by_a_gpu_server(own_stage: Stage, server: LocalGpuServer) -> None:
    before = _calls_of_workers(own_stage)
    own_stage.worker(**server.environment())
    job_id = own_stage.user.queue(max_steps=20)
    job = own_stage.ended(job_id)
    assert (job["status"], job["error_message"]) == ("completed", None)
    (run,) = own_stage.runs(job_id)
    assert (run["launcher"], run["endpoint"]) == ("gpu-server", server.url)
    assert run["gpu_seconds"] > 0
    assert job["artifact_id"] is not None
    assert _calls_of_workers(own_stage) == before


def test_server_killed_half_way_goes_on_from_the_checkpoint(own_stage: Stage, server: LocalGpuServer) -> None:
    own_stage.worker(**server.environment())
    job_id = own_stage.user.queue(max_steps=100)
    own_stage.training(job_id, step=20)
    server.kill()
    until(lambda: not _trains(own_stage, job_id), "the trainer ends by itself", state=server.log)
    server.start()
    job = own_stage.ended(job_id)
    assert (job["status"], job["error_message"]) == ("completed", None)
    assert len(own_stage.runs(job_id)) == 1
    steps = own_stage.steps(job_id)
    executions = list(dict.fromkeys(step.execution_id for step in steps))
    assert len(executions) == 2
    resumed_at = min(step.step for step in steps if step.execution_id == executions[1])
    assert resumed_at > 5


def test_cancelled_job_frees_the_gpu_of_the_server(own_stage: Stage, server: LocalGpuServer) -> None:
    own_stage.worker(**server.environment())
    job_id = own_stage.user.queue(max_steps=100, seed=int(Mishap.ENDLESS))
    own_stage.training(job_id)
    own_stage.user.cancel_by_update(job_id)
    assert [run["status"] for run in own_stage.settled(job_id)] == ["cancelled"]
    until(lambda: server.call("GET", "/health").json()["running"] == 0, "the GPU is free", state=server.log)


def _calls_of_workers(stage: Stage) -> list[int]:
    return [stage.runpod.ledger.calls[name] for name in ("run", "status", "cancel", "health")]


def _trains(stage: Stage, job_id: str) -> bool:
    """Whether a step has been taken since this was asked before."""
    before = getattr(stage, "_steps_seen", -1)
    seen = len(stage.steps(job_id))
    stage._steps_seen = seen  # type: ignore[attr-defined]
    return seen != before
