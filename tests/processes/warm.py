"""Starts GPU workers before a test begins, so that no cold start delays it."""

from __future__ import annotations

from sandbox.runpod import LocalRunPod
from tests.processes.waiting import until


def await_idle(runpod: LocalRunPod, workers: int) -> None:
    """Start all workers of the endpoint, and return when `workers` of them are idle."""
    runpod.start_workers()
    until(lambda: list(runpod.workers().values()) == ["idle"] * workers, "every GPU worker is up", state=runpod.workers)
