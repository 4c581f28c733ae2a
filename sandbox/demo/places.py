"""Where the demo trains: what is started for each launcher, and whether the endpoint that answers sees the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from lora_worker.launchers.base import Launcher
from lora_worker.launchers.gpu_server.launcher import GpuServerLauncher
from lora_worker.launchers.runpod.launcher import RunPodLauncher
from lora_worker.launchers.runpod_pods.launcher import RunPodPodsLauncher
from sandbox.gpu_server import LocalGpuServer
from sandbox.runpod import LocalRunPod

LAUNCHERS: Mapping[str, type[Launcher]] = {
    launcher.name: launcher for launcher in (RunPodLauncher, GpuServerLauncher, RunPodPodsLauncher)
}
"""By the names that `make demo LAUNCHER=` takes; the first one is the default."""


def why_not_called(launcher: str) -> str | None:
    """Why an adapter that this launcher trained can't be called by its name at the endpoint; None where it can."""
    if LAUNCHERS[launcher].takes_errands:
        return None
    return f"{launcher} puts no adapter where the inference endpoint finds it (docs/serving.md)"


def start_launcher(stack: ExitStack, launcher: str, folder: Path, env: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Start what trains, until the stack is closed; `env` is added to the trainers' environment.

    Returns the worker's settings, and what was started in words.
    """
    if launcher == GpuServerLauncher.name:
        server = stack.enter_context(LocalGpuServer(folder / "gpu-server", env))
        return server.environment(), f"GPU server at {server.url}, on the CPU"
    runpod = stack.enter_context(LocalRunPod.start(env=dict(env)))
    if launcher == RunPodPodsLauncher.name:
        settings = {
            "LORA_WORKER_LAUNCHER": launcher,
            "LORA_WORKER_RUNPOD_API_URL": runpod.rest_url,
            "LORA_WORKER_RUNPOD_PODS_IMAGE": "lora-trainer:1",
            "GPU_CLUSTER_API_KEY": runpod.api_key,
        }
        return settings, f"RunPod's pods at {runpod.rest_url}, none until a job wants one"
    settings = {"GPU_CLUSTER_API_URL": runpod.api_url, "GPU_CLUSTER_API_KEY": runpod.api_key}
    return settings, f"RunPod at {runpod.api_url} (its API, the SDK's worker)"
