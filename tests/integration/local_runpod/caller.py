"""A client of the local RunPod that also reads its records."""

from __future__ import annotations

import os
from typing import Any

import httpx
import pytest

from sandbox.runpod import LocalRunPod, Outcome
from tests.processes.waiting import awaited

HANDLER = "tests.handlers.errands"


class Caller:
    """A client of the public API, with access to the server's records."""

    def __init__(self, runpod: LocalRunPod) -> None:
        self.runpod = runpod
        self.http = httpx.Client(
            base_url=runpod.api_url,
            headers={"authorization": f"Bearer {runpod.api_key}"},
            timeout=30,
            trust_env=False,
        )

    def run(self, do: str, policy: dict[str, int] | None = None, **rest: Any) -> str:
        body = {"input": {"do": do, **rest}, **({"policy": policy} if policy else {})}
        return self.http.post("/run", json=body).raise_for_status().json()["id"]

    def status(self, job_id: str) -> dict[str, Any]:
        return self.http.get(f"/status/{job_id}").raise_for_status().json()

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self.http.post(f"/cancel/{job_id}").raise_for_status().json()

    def until(self, job_id: str, *statuses: str) -> dict[str, Any]:
        what = f"a job that is {' or '.join(statuses)}"
        return awaited(lambda: self.status(job_id), what, fits=lambda answer: answer["status"] in statuses)

    def until_output(self, job_id: str) -> dict[str, Any]:
        return awaited(lambda: self.status(job_id), "a job with an output", fits=lambda answer: "output" in answer)

    def outcomes(self, job_id: str) -> list[Outcome | None]:
        return [execution.outcome for execution in self.runpod.ledger.executions_of(job_id)]

    def until_done_with(self, job_id: str) -> list[Outcome | None]:
        """The outcomes of the job's executions, once there are some and all have ended."""
        return awaited(
            lambda: self.outcomes(job_id), "every execution ends", fits=lambda found: found and None not in found
        )


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def endpoint(**settings: Any) -> pytest.MarkDecorator:
    """Settings with which the fixture `own` starts its endpoint."""
    return pytest.mark.parametrize("own", [settings], indirect=True, ids=["own"])
