"""A client of the local RunPod that also reads its records."""

from __future__ import annotations

import os
from typing import Any

import httpx
import pytest

from sandbox.runpod import LocalRunPod, Outcome
from tests.processes.waiting import awaited
from tests.runpod_rest import faults_of_answer, faults_of_request

HANDLER = "tests.handlers.errands"
ENDPOINT: dict[str, Any] = {
    "name": "trainer",
    "type": "QUEUE",
    "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
    "gpu": {"pools": ["AMPERE_24"]},
    "image": "errands:1",
}


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


class RestCaller:
    """A client of the REST API, which checks every request and answer against RunPod's description."""

    def __init__(self, runpod: LocalRunPod, key: str | None = None) -> None:
        self.runpod = runpod
        self.http = httpx.Client(
            base_url=runpod.rest_url,
            headers={"authorization": f"Bearer {key or runpod.api_key}"},
            timeout=30,
            trust_env=False,
        )
        self._jobs: list[Caller] = []

    def close(self) -> None:
        for caller in (self, *self._jobs):
            caller.http.close()

    def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """A call that succeeds."""
        answer = self.http.request(method, path, json=body).raise_for_status()
        assert faults_of_request(method, str(answer.request.url), body) == []
        assert faults_of(answer) == []
        return answer.json() if answer.content else {}

    def create_endpoint(self, **fields: Any) -> dict[str, Any]:
        return self.call("POST", "/serverless", {**ENDPOINT, **fields})

    def workers(self, endpoint_id: str) -> list[dict[str, Any]]:
        return self.call("GET", f"/serverless/{endpoint_id}/workers")["workers"]

    def until_worker(self, endpoint_id: str, status: str) -> dict[str, Any]:
        """The endpoint's only worker, once it has the status."""
        found = awaited(
            lambda: self.workers(endpoint_id),
            f"a worker that is {status}",
            fits=lambda workers: [worker["status"] for worker in workers] == [status],
        )
        return found[0]

    def jobs_of(self, endpoint_id: str) -> Caller:
        """A client of the endpoint's job API."""
        caller = Caller(self.runpod)
        caller.http.base_url = httpx.URL(self.runpod.api_url).copy_with(path=f"/v2/{endpoint_id}")
        self._jobs.append(caller)
        return caller


def faults_of(answer: httpx.Response) -> list[str]:
    """What in an answer of the REST API differs from RunPod's description."""
    kind = answer.headers.get("content-type", "")
    body = answer.json() if answer.content else None
    return faults_of_answer(answer.request.method, answer.request.url.path, answer.status_code, kind, body)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def endpoint(**settings: Any) -> pytest.MarkDecorator:
    """Settings with which the fixture `own` starts its endpoint."""
    return pytest.mark.parametrize("own", [settings], indirect=True, ids=["own"])
