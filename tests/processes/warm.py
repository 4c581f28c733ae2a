"""GPU workers that are up before a test begins, so that no test waits for a cold start or meets one in the middle."""

from __future__ import annotations

from sandbox.runpod import LocalRunPod
from tests.processes.waiting import until


def await_idle(runpod: LocalRunPod, workers: int) -> None:
    """Start all the workers that the endpoint may have, and return when so many are idle."""
    runpod.start_workers()
    until(lambda: list(runpod.workers().values()) == ["idle"] * workers, "every GPU worker is up", state=runpod.workers)
