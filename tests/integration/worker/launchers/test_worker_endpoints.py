"""A launch is polled, cancelled and billed at its own endpoint, even after the settings have changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.runpod import LocalRunPod
from sandbox.standin import Mishap, standin_env
from tests.processes.stage import Stage


@pytest.fixture
def another_endpoint(gpus: LocalRunPod, gpu_volume: Path) -> Iterator[LocalRunPod]:
    """An endpoint at another address with the same key, to which the settings point after a change."""
    with LocalRunPod.start(
        api_key=gpus.api_key, endpoint="another", workers_max=1, env=standin_env(gpu_volume, step_seconds=0.02)
    ) as runpod:
        yield runpod


def test_launch_of_another_launcher_is_left_to_its_own_worker(stage: Stage) -> None:
    job_id = stage.user.queue(max_steps=100, seed=int(Mishap.ENDLESS))
    worker = stage.worker()
    stage.training(job_id)
    stage.stop(worker)
    stage.database.rows("update training_runs set launcher = 'modal' where job_id = %s", job_id)
    calls = dict(stage.runpod.ledger.calls)
    stage.one_pass()
    (run,) = stage.runs(job_id)
    assert (run["status"], run["worker"]) == ("running", None), "a lease here would keep its own worker from it"
    assert [stage.runpod.ledger.calls[name] for name in ("status", "cancel")] == [
        calls["status"],
        calls.get("cancel", 0),
    ]
    stage.database.rows("update training_runs set launcher = 'runpod' where job_id = %s", job_id)
    stage.worker()
    stage.user.cancel_by_update(job_id)
    stage.settled(job_id)
    stage.gpus_free(job_id)


def test_run_is_cancelled_and_billed_at_its_launchs_endpoint(stage: Stage, another_endpoint: LocalRunPod) -> None:
    job_id = stage.user.queue(max_steps=100, seed=int(Mishap.ENDLESS))
    worker = stage.worker()
    stage.training(job_id)
    (run,) = stage.runs(job_id)
    stage.stop(worker)
    former = stage.runpod.api_url
    stage.worker(GPU_CLUSTER_API_URL=another_endpoint.api_url, LORA_WORKER_FORMER_ENDPOINTS=former)
    stage.user.cancel_by_update(job_id)
    assert [run["status"] for run in stage.settled(job_id)] == ["cancelled"]
    assert stage.at_runpod(run["external_job_id"])["status"] in {"CANCELLED", "FAILED"}
    stage.gpus_free(job_id)
    (cost,) = stage.user.costs(job_id)
    assert cost["details"]["gpu_seconds"] > 0
    assert another_endpoint.ledger.calls["cancel"] == 0


def test_run_at_an_unreachable_endpoint_is_not_marked_cancelled(stage: Stage, another_endpoint: LocalRunPod) -> None:
    job_id = stage.user.queue(max_steps=100, seed=int(Mishap.ENDLESS))
    worker = stage.worker()
    stage.training(job_id)
    stage.stop(worker)
    worker = stage.worker(GPU_CLUSTER_API_URL=another_endpoint.api_url)
    stage.user.cancel_by_update(job_id)
    stage.until(job_id, lambda _: any(run["problem"] for run in stage.runs(job_id)), "the run shows a problem")
    (run,) = stage.runs(job_id)
    assert run["ended_at"] is None
    assert "LORA_WORKER_FORMER_ENDPOINTS" in run["problem"]
    assert run["problem"].count(stage.runpod.api_url) == 1
    assert "LORA_WORKER_FORMER_ENDPOINTS" in stage.log()
    assert another_endpoint.ledger.calls["cancel"] == another_endpoint.ledger.calls["status"] == 0
    stage.stop(worker)
    # Once the former endpoint is in the settings, the next worker ends it.
    stage.worker(GPU_CLUSTER_API_URL=another_endpoint.api_url, LORA_WORKER_FORMER_ENDPOINTS=stage.runpod.api_url)
    assert [run["status"] for run in stage.settled(job_id)] == ["cancelled"]
    stage.gpus_free(job_id)
