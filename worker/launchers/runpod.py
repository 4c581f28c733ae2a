"""RunPod Serverless, through its queue-based job API (api.runpod.ai/v2/<endpoint>).

Facts this rests on (RunPod's docs, August 2026): `/run` has no idempotency key; results are kept 30
minutes; `policy.executionTimeout` and `policy.ttl` are in ms, the ttl counts from submission and
deletes even a running job; a handler that fails inside may still be COMPLETED; an execution past its
limit is FAILED with "executionTimeout exceeded"; bodies end at 10 MB; `{"input": {}}` is lost.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import httpx
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from worker.errors import LaunchInDoubtError, ServiceRefusedError, ServiceUnavailableError
from worker.launchers.base import EndpointHealth, LaunchState, Observation, Policy

_SERVICE = "RunPod"
_MAX_BODY_BYTES = 10_000_000
_MAX_POLICY_SECONDS = 7 * 86400

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
"""Containers name their own: one with a slash or dots would lead to another route, with the key."""

STATES: dict[str, LaunchState] = {
    "IN_QUEUE": LaunchState.QUEUED,
    "IN_PROGRESS": LaunchState.RUNNING,
    # Documented, never seen.
    "RUNNING": LaunchState.RUNNING,
    "COMPLETED": LaunchState.COMPLETED,
    "FAILED": LaunchState.FAILED,
    "CANCELLED": LaunchState.CANCELLED,
    "TIMED_OUT": LaunchState.TIMED_OUT,
}


def _seconds(milliseconds: Any) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else None


def parse_observation(body: Any) -> Observation:
    """An observation from the JSON of `/status`."""
    if not isinstance(body, dict) or not isinstance(body.get("status"), str):
        return Observation(LaunchState.UNKNOWN, reason="the answer holds no status")
    state = STATES.get(body["status"])
    if state is None:
        return Observation(LaunchState.UNKNOWN, reason=f"unknown status {body['status'][:40]!r}")
    error = body.get("error")
    return Observation(
        state,
        output=body.get("output"),
        error=error if isinstance(error, str) or error is None else json.dumps(error),
        execution_seconds=_seconds(body.get("executionTime")),
        queue_seconds=_seconds(body.get("delayTime")),
    )


def _retry_after_seconds(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdigit() else None


def _explain_refusal(response: httpx.Response) -> str:
    return {
        400: "RunPod refused the request (400): the payload or its policy is not valid",
        401: "RunPod refused the API key (401): check GPU_CLUSTER_API_KEY",
        403: "RunPod refused the API key (403): it may not use this endpoint",
        404: "RunPod knows no such endpoint (404): check GPU_CLUSTER_API_URL, and that the key belongs to it",
        413: "RunPod refused the request (413): it is larger than 10 MB",
    }.get(response.status_code, f"RunPod refused the request ({response.status_code})")


class RunPodLauncher:
    """One serverless endpoint."""

    name = "runpod"

    def __init__(self, url: str, key: str, *, http: httpx.AsyncClient, concurrency: int = 16) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"}
        self._http = http
        self._slots = asyncio.Semaphore(concurrency)

    async def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        async with self._slots:
            return await self._http.request(method, self._url + path, headers=self._headers, **arguments)

    async def launch(self, payload: dict[str, Any], policy: Policy) -> str:
        """POST `/run`. See `Launcher.launch`.

        Only what certainly was not accepted is sent again here: refused connections and 429.
        """
        body = {
            "input": payload,
            "policy": {
                "executionTimeout": int(min(policy.execution_seconds, _MAX_POLICY_SECONDS) * 1000),
                "ttl": int(min(policy.ttl_seconds, _MAX_POLICY_SECONDS) * 1000),
            },
        }
        content = json.dumps(body, allow_nan=False).encode()
        if len(content) > _MAX_BODY_BYTES:
            raise ServiceRefusedError(_SERVICE, "the job's request is larger than RunPod's 10 MB", status=413)
        try:
            response = await self._send("POST", "/run", content=content)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise ServiceUnavailableError(_SERVICE, f"RunPod is not reachable ({type(error).__name__})") from None
        except httpx.HTTPError as error:
            raise LaunchInDoubtError(_SERVICE, f"RunPod did not answer the launch ({type(error).__name__})") from None
        return self._read_launch(response)

    @staticmethod
    def _read_launch(response: httpx.Response) -> str:
        if response.status_code == 429:
            raise ServiceUnavailableError(
                _SERVICE, "RunPod takes no more requests now (429)",
                retry_after_seconds=_retry_after_seconds(response),
            )  # fmt: skip
        if response.status_code >= 500:
            raise LaunchInDoubtError(_SERVICE, f"RunPod failed while it took the launch ({response.status_code})")
        if response.status_code >= 400:
            raise ServiceRefusedError(_SERVICE, _explain_refusal(response), status=response.status_code)
        try:
            external_job_id = response.json()["id"]
        except (ValueError, KeyError, TypeError):
            raise LaunchInDoubtError(_SERVICE, "RunPod's answer to the launch holds no id") from None
        if not isinstance(external_job_id, str) or not _JOB_ID.fullmatch(external_job_id):
            raise LaunchInDoubtError(_SERVICE, "RunPod's answer to the launch holds no usable id")
        return external_job_id

    async def observe(self, external_job_id: str) -> Observation:
        """GET `/status/{id}`. See `Launcher.observe`."""
        if not _JOB_ID.fullmatch(external_job_id):
            return Observation(LaunchState.MISSING, reason="no id that RunPod gives")
        try:
            response = await self._send("GET", f"/status/{external_job_id}")
        except httpx.HTTPError as error:
            return Observation(LaunchState.UNKNOWN, reason=type(error).__name__)
        if response.status_code == 404:
            # An unknown endpoint answers 404 too, and then every run would look lost.
            health = await self.health()
            state = LaunchState.MISSING if health.reachable else LaunchState.UNKNOWN
            return Observation(state, reason=health.problem or "404")
        if response.status_code != 200:
            return Observation(LaunchState.UNKNOWN, reason=f"HTTP {response.status_code}")
        try:
            return parse_observation(response.json())
        except ValueError:
            return Observation(LaunchState.UNKNOWN, reason="the answer is not JSON")

    async def cancel(self, external_job_id: str) -> bool:
        """POST `/cancel/{id}`, a few times. See `Launcher.cancel`."""
        if not _JOB_ID.fullmatch(external_job_id):
            return True

        async def post() -> httpx.Response:
            response = await self._send("POST", f"/cancel/{external_job_id}")
            if response.status_code == 429 or response.status_code >= 500:
                response.raise_for_status()
            return response

        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(lambda error: isinstance(error, httpx.HTTPError)),
                stop=stop_after_attempt(3),
                wait=wait_random_exponential(multiplier=0.3, max=2),
                reraise=True,
            ):
                with attempt:
                    response = await post()
        except httpx.HTTPError:
            return False
        return response.status_code in {200, 404} or response.is_success

    async def health(self) -> EndpointHealth:
        """GET `/health`. See `Launcher.health`."""
        try:
            response = await self._send("GET", "/health")
        except httpx.HTTPError as error:
            return EndpointHealth(False, 0, 0, f"RunPod is not reachable ({type(error).__name__})")
        if response.status_code != 200:
            return EndpointHealth(False, 0, 0, _explain_refusal(response))
        try:
            body = response.json()
            workers, jobs = body["workers"], body["jobs"]
            count = sum(int(workers.get(state, 0)) for state in ("idle", "initializing", "ready", "running"))
            queued = int(jobs.get("inQueue", 0))
        except (ValueError, KeyError, TypeError, AttributeError):
            return EndpointHealth(False, 0, 0, "RunPod's answer to /health is not readable")
        problem = None
        if int(workers.get("throttled", 0)) and not count:
            problem = "RunPod has no free GPU of this kind now (workers throttled)"
        elif queued and not count:
            problem = (
                "no worker takes the queued jobs: RunPod sets an endpoint that was idle for a week to "
                "0 workers; raise workersMax in its settings"
            )
        return EndpointHealth(True, count, queued, problem)
