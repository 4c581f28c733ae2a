"""A local RunPod with an empty account, which the commands `deploy …` find in their environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_worker.deployment.rest import RunPodApi
from sandbox.runpod import LocalRunPod
from tests.integration.worker.deployment.console import call, endpoints, volumes


@pytest.fixture(scope="module")
def runpod() -> Iterator[LocalRunPod]:
    with LocalRunPod.start(workers_max=0, rest_calls_per_minute=100_000) as runpod:
        yield runpod


async def _no_wait(_: float) -> None:
    return


@pytest.fixture
def account(runpod: LocalRunPod, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty account and folder, RunPod's key in the environment, and retries that follow at once."""
    monkeypatch.chdir(tmp_path)
    for name in ("GPU_CLUSTER_API_KEY", "GPU_CLUSTER_API_URL", "RUNPOD_ENDPOINT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RUNPOD_API_KEY", runpod.api_key)
    monkeypatch.setenv("LORA_WORKER_RUNPOD_API_URL", runpod.rest_url)
    monkeypatch.setitem(RunPodApi.__init__.__kwdefaults__, "sleep", _no_wait)
    yield
    runpod.faults.clear()
    for endpoint in endpoints(runpod):
        call(runpod, "DELETE", f"serverless/{endpoint['id']}")
    for volume in volumes(runpod):
        call(runpod, "DELETE", f"network-volumes/{volume['id']}")
