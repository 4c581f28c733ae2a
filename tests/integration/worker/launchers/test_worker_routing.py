"""One worker launches at a RunPod endpoint and at a GPU machine of one's own, as its routing table says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.gpu_server import LocalGpuServer
from sandbox.processes import free_ports
from sandbox.runpod import LocalRunPod
from sandbox.standin import Mishap, standin_env
from tests.processes.stage import Stage
from tests.processes.waiting import until

TABLE = """
fall_back_minutes = 0.02
[endpoints.cloud]
launcher = "runpod"
endpoint = "{cloud}"
slots = 1
gpu_type = "H100"
price_per_hour = 4
[endpoints.own]
launcher = "gpu-server"
endpoint = "{own}"
slots = 1
gpu_type = "RTX-4090"
price_per_hour = 0.5
[[rules]]
endpoints = ["cloud", "own"]
"""


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    folder = tmp_path / "gpu-volume"
    folder.mkdir()
    return folder


@pytest.fixture
def server(tmp_path: Path, volume: Path) -> Iterator[LocalGpuServer]:
    with LocalGpuServer(tmp_path / "gpu-server", standin_env(volume, step_seconds=0.02)) as made:
        yield made


@pytest.fixture
def cloud(gpus: LocalRunPod, volume: Path) -> Iterator[LocalRunPod]:
    """An endpoint of this test alone, whose GPUs may be taken away."""
    env = standin_env(volume, step_seconds=0.02)
    with LocalRunPod.start(api_key=gpus.api_key, endpoint="routed", workers_max=1, env=env) as runpod:
        yield runpod


@pytest.fixture
def routed(cloud: LocalRunPod, volume: Path, stage_with: Callable[..., Stage]) -> Stage:
    return stage_with(cloud, volume)


def table(folder: Path, server: LocalGpuServer, *, cloud: str, own: str) -> dict[str, Any]:
    """The settings of a worker with this routing table."""
    path = folder / f"routes-{len(list(folder.glob('routes-*')))}.toml"
    path.write_text(TABLE.format(cloud=cloud, own=own))
    return {**server.environment(), "LORA_WORKER_LAUNCHER": "runpod", "LORA_WORKER_ROUTES": str(path)}


def test_run_that_finds_no_gpu_goes_to_the_next_place_uncounted(
    routed: Stage, cloud: LocalRunPod, server: LocalGpuServer, tmp_path: Path
) -> None:
    cloud.set_workers(throttled=True)
    job_id = routed.user.queue(max_steps=20)
    routed.worker(**table(tmp_path, server, cloud=cloud.api_url, own=server.url))
    job = routed.ended(job_id)
    assert (job["status"], job["error_message"]) == ("completed", None)
    left, trained = routed.runs(job_id)
    assert (left["launcher"], left["status"], left["error_code"], left["fault"]) == (
        "runpod", "failed", "no_gpu_there", None
    )  # fmt: skip
    assert routed.at_runpod(left["external_job_id"])["status"] == "CANCELLED"
    assert (trained["launcher"], trained["endpoint"]) == ("gpu-server", server.url)
    assert {step.execution_id for step in routed.steps(job_id)} == {str(trained["execution_id"])}
    (cost,) = routed.user.costs(job_id)
    assert (cost["details"]["price_per_hour"], cost["details"]["gpu_type"]) == (0.5, "RTX-4090")


def test_live_runs_of_two_launchers_stay_where_they_were_launched(
    routed: Stage, cloud: LocalRunPod, server: LocalGpuServer, tmp_path: Path
) -> None:
    jobs = [routed.user.queue(max_steps=100, seed=int(Mishap.ENDLESS)) for _ in range(2)]
    worker = routed.worker(**table(tmp_path, server, cloud=cloud.api_url, own=server.url))
    for job_id in jobs:
        routed.training(job_id)
    launchers = {routed.runs(job_id)[0]["launcher"] for job_id in jobs}
    assert launchers == {"runpod", "gpu-server"}, "each place has one slot"
    routed.stop(worker)
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}"
    # The settings still name the addresses of before, where their keys may go; nothing is launched there any more.
    changed = table(tmp_path, server, cloud=f"{cloud.api_url.rpartition('/')[0]}/other", own=nobody)
    routed.worker(**changed)
    for job_id in jobs:
        routed.user.cancel_by_update(job_id)
    for job_id in jobs:
        assert [run["status"] for run in routed.settled(job_id)] == ["cancelled"]
        (run,) = routed.runs(job_id)
        (cost,) = routed.user.costs(job_id)
        price = {"runpod": 4, "gpu-server": 0.5}[run["launcher"]]
        assert cost["details"]["price_per_hour"] == price
        assert cost["details"]["gpu_seconds"] > 0
        if run["launcher"] == "runpod":
            assert routed.at_runpod(run["external_job_id"])["status"] in {"CANCELLED", "FAILED"}
    until(lambda: server.call("GET", "/health").json()["running"] == 0, "the GPU is free", state=server.log)
