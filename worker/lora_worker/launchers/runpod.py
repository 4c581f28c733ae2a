"""RunPod Serverless, through its queue-based job API (api.runpod.ai/v2/<endpoint>).

Facts this rests on (RunPod's docs, August 2026): `/run` has no idempotency key; results are kept 30
minutes; `policy.executionTimeout` and `policy.ttl` are in ms, the ttl counts from submission and
deletes even a running job; a handler that fails inside may still be COMPLETED; an execution past its
limit is FAILED with "executionTimeout exceeded"; bodies end at 10 MB; `{"input": {}}` is lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import httpx

from lora_contract.connections import why_unreachable
from lora_worker.errors import LaunchInDoubtError, LaunchRefusedError
from lora_worker.launchers.addresses import Addresses
from lora_worker.launchers.base import EndpointHealth, Guide, LaunchRef, LaunchState, Observation, Policy
from lora_worker.launchers.http_calls import HttpCalls
from lora_worker.launchers.limits import CallLimit
from lora_worker.launchers.runpod_answers import count_of, read_observation
from lora_worker.launchers.runpod_settings import MAX_POLICY_SECONDS, RunPodSettings

_GUIDE = Guide(
    title="RunPod",
    console="RunPod's console",
    check="check GPU_CLUSTER_API_URL and GPU_CLUSTER_API_KEY",
    former_endpoint="give GPU_CLUSTER_API_KEY access to it, or name it in LORA_WORKER_FORMER_ENDPOINTS; its runs are "
    "neither ended nor billed before",
)
_SERVICE = _GUIDE.title
_MAX_BODY_BYTES = 10_000_000
_CLOCK_DOUBT_SECONDS = 86400.0

_MOST_CANCELS = 20
_MOST_HEALTH_LOOKS = 20

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
"""Containers name their own: one with a slash or dots would lead to another route, with the key."""

_ELSEWHERE = (
    "it is at another API than GPU_CLUSTER_API_URL, and the key is not sent there: "
    "name it in LORA_WORKER_FORMER_ENDPOINTS while launches of its time live"
)


def _explain_refusal(status: int) -> str:
    return {
        400: "RunPod refused the request (400): the payload or its policy is not valid",
        401: "RunPod refused the API key (401): check GPU_CLUSTER_API_KEY",
        403: "RunPod refused the API key (403): it may not use this endpoint",
        404: "RunPod knows no such endpoint (404): check GPU_CLUSTER_API_URL, and that the key belongs to it",
        413: "RunPod refused the request (413): it is larger than 10 MB",
    }.get(status, f"RunPod refused the request ({status})")


def most_connections(settings: RunPodSettings) -> int:
    """How many calls may be under way at the same time: looks and launches may fill their bounds together."""
    return 2 * settings.launcher_concurrency + _MOST_CANCELS


class RunPodLauncher:
    """The serverless endpoint where launches go, and those of former launches at the same API.

    `former_endpoints` are addresses elsewhere at which launches may still live; the key is sent nowhere else.
    """

    name = "runpod"
    guide = _GUIDE
    longest_launch_seconds = MAX_POLICY_SECONDS + _CLOCK_DOUBT_SECONDS

    def __init__(
        self,
        url: str,
        key: str,
        *,
        http: httpx.AsyncClient,
        concurrency: int = 200,
        former_endpoints: Iterable[str] = (),
    ) -> None:
        self._addresses = Addresses(url, former_endpoints)
        self.endpoint = self._addresses.present
        # RunPod's own, side by side and in ten seconds. Each kind has its bound: cancels never wait for looks.
        self._limits = {
            "run": CallLimit(most=min(concurrency, 200), calls=1000),
            "status": CallLimit(most=min(concurrency, 400), calls=2000),
            "cancel": CallLimit(most=_MOST_CANCELS, calls=100),
            # Not in its list; less than what it allows for anything else that is only read.
            "health": CallLimit(most=_MOST_HEALTH_LOOKS, calls=200),
        }
        self._calls = HttpCalls(http, key, service=_SERVICE, limits=self._limits)

    @classmethod
    def open(cls, settings: RunPodSettings, http: httpx.AsyncClient) -> RunPodLauncher:
        """The launcher of these settings."""
        return cls(
            settings.gpu_cluster_api_url,
            settings.gpu_cluster_api_key.get_secret_value(),
            http=http,
            concurrency=settings.launcher_concurrency,
            former_endpoints=settings.former_endpoints,
        )

    async def launch(self, payload: dict[str, Any], policy: Policy) -> str:
        """POST `/run`. See `Launcher.launch`.

        Only what certainly was not accepted is sent again here: refused connections and 429.
        """
        body = {
            "input": payload,
            "policy": {
                "executionTimeout": int(min(policy.execution_seconds, MAX_POLICY_SECONDS) * 1000),
                "ttl": int(min(policy.ttl_seconds, MAX_POLICY_SECONDS) * 1000),
            },
        }
        content = json.dumps(body, allow_nan=False).encode()
        if len(content) > _MAX_BODY_BYTES:
            raise LaunchRefusedError(_SERVICE, "the job's request is larger than RunPod's 10 MB", status=413)
        answer = await self._calls.post_launch("run", f"{self.endpoint}/run", content, explain=_explain_refusal)
        try:
            external_job_id = (await answer.json())["id"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise LaunchInDoubtError(_SERVICE, "RunPod's answer to the launch holds no id") from None
        if not isinstance(external_job_id, str) or not _JOB_ID.fullmatch(external_job_id):
            raise LaunchInDoubtError(_SERVICE, "RunPod's answer to the launch holds no usable id")
        return external_job_id

    async def observe(self, launch: LaunchRef) -> Observation:
        """GET `/status/{id}`. See `Launcher.observe`."""
        if not _JOB_ID.fullmatch(launch.external_job_id):
            return Observation(LaunchState.MISSING, reason="no id that RunPod gives")
        base = self._addresses.of(launch.endpoint)
        if base is None:
            return Observation(LaunchState.UNKNOWN, reason=_ELSEWHERE)
        return await self._calls.look(
            "status",
            f"{base}/status/{launch.external_job_id}",
            explain=_explain_refusal,
            read=read_observation,
            health=lambda: self.health(base),
        )

    async def cancel(self, launch: LaunchRef) -> bool:
        """POST `/cancel/{id}`, a few times. See `Launcher.cancel`."""
        if not _JOB_ID.fullmatch(launch.external_job_id):
            return True
        base = self._addresses.of(launch.endpoint)
        if base is None:
            return False
        return await self._calls.post_cancel("cancel", f"{base}/cancel/{launch.external_job_id}")

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        """GET `/health`. See `Launcher.health`."""
        base = self._addresses.of(endpoint)
        if base is None:
            return EndpointHealth(False, 0, 0, _ELSEWHERE)
        try:
            answer = await self._calls.send("health", "GET", f"{base}/health")
        except httpx.HTTPError as error:
            return EndpointHealth(False, 0, 0, f"RunPod is not reachable: {why_unreachable(error)}")
        if answer.status_code != 200:
            return EndpointHealth(False, 0, 0, _explain_refusal(answer.status_code))
        try:
            body = await answer.json()
            return _read_health(body["workers"], body["jobs"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return EndpointHealth(False, 0, 0, "RunPod's answer to /health is not readable")


def _read_health(workers: Any, jobs: Any) -> EndpointHealth:
    running, starting = count_of(workers, "running"), count_of(workers, "initializing")
    # RunPod counts an idle worker as a ready one, too.
    ready = max(count_of(workers, "idle"), count_of(workers, "ready"))
    queued, unhealthy = count_of(jobs, "inQueue"), count_of(workers, "unhealthy")
    problem = None
    if unhealthy and queued and not ready and not running:
        problem = (
            f"its workers end before they take a job ({unhealthy} unhealthy): the image fails at its start; "
            "`lora-worker logs JOB` with a job that waits there shows why"
        )
    elif count_of(workers, "throttled") and not ready + running + starting:
        problem = "RunPod has no free GPU of this kind now (workers throttled)"
    elif queued and not ready + running + starting:
        problem = (
            "no worker takes the queued jobs: RunPod sets an endpoint that was idle for a week to "
            "0 workers; raise workersMax in its settings"
        )
    return EndpointHealth(
        True,
        ready + running + starting,
        queued,
        problem,
        ready=ready,
        running=running,
        starting=starting,
        unhealthy=unhealthy,
        jobs_running=count_of(jobs, "inProgress"),
    )
