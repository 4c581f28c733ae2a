"""RunPod Serverless, through its queue-based job API (api.runpod.ai/v2/<endpoint>).

Facts this rests on (RunPod's docs, August 2026): `/run` has no idempotency key; results are kept 30
minutes; `policy.executionTimeout` and `policy.ttl` are in ms, the ttl counts from submission and
deletes even a running job; a handler that fails inside may still be COMPLETED; an execution past its
limit is FAILED with "executionTimeout exceeded"; bodies end at 10 MB; `{"input": {}}` is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httpx

from lora_worker.launchers.addresses import Addresses
from lora_worker.launchers.answers import Answer
from lora_worker.launchers.base import EndpointHealth, Guide, Observation, Policy
from lora_worker.launchers.http_launcher import HttpLauncher
from lora_worker.launchers.limits import CallLimit
from lora_worker.launchers.runpod.answers import count_of, read_observation
from lora_worker.launchers.runpod.settings import MAX_POLICY_SECONDS, RunPodSettings

_GUIDE = Guide(
    title="RunPod",
    console="RunPod's console",
    check="check GPU_CLUSTER_API_URL and GPU_CLUSTER_API_KEY",
    former_endpoint="give GPU_CLUSTER_API_KEY access to it, or name it in LORA_WORKER_FORMER_ENDPOINTS; its runs are "
    "neither ended nor billed before",
    volume="A Pod with that volume shows it below /workspace.",
)
_CLOCK_DOUBT_SECONDS = 86400.0

_MOST_CANCELS = 20
_MOST_HEALTH_LOOKS = 20

_ELSEWHERE = (
    "it is at another API than GPU_CLUSTER_API_URL, and the key is not sent there: "
    "name it in LORA_WORKER_FORMER_ENDPOINTS while launches of its time live"
)


def most_connections(settings: RunPodSettings) -> int:
    """How many calls may be under way at the same time: looks and launches may fill their bounds together."""
    return 2 * settings.launcher_concurrency + _MOST_CANCELS


class RunPodLauncher(HttpLauncher):
    """The serverless endpoint where launches go, and those of former launches at the same API.

    `former_endpoints` are addresses elsewhere at which launches may still live; the key is sent nowhere else.
    """

    name = "runpod"
    guide = _GUIDE
    launch_route, status_route, cancel_route, id_key = "run", "status", "cancel", "id"
    elsewhere = _ELSEWHERE
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
        # RunPod's own, side by side and in ten seconds. Each kind has its bound: cancels never wait for looks.
        limits = {
            "run": CallLimit(most=min(concurrency, 200), calls=1000),
            "status": CallLimit(most=min(concurrency, 400), calls=2000),
            "cancel": CallLimit(most=_MOST_CANCELS, calls=100),
            # Not in its list; less than what it allows for anything else that is only read.
            "health": CallLimit(most=_MOST_HEALTH_LOOKS, calls=200),
        }
        super().__init__(Addresses(url, former_endpoints), key, http=http, limits=limits)

    @classmethod
    def open(cls, settings: RunPodSettings, http: httpx.AsyncClient, endpoint: str | None = None) -> RunPodLauncher:
        """The launcher of these settings, or of another endpoint with them: its address, or its id alone.

        Raises:
            ValueError: that can't be an endpoint; the text says why.
        """
        own = settings.gpu_cluster_api_url
        address = settings.endpoint_address(endpoint) if endpoint else own
        return cls(
            address,
            settings.gpu_cluster_api_key.get_secret_value(),
            http=http,
            concurrency=settings.launcher_concurrency,
            former_endpoints=(own, *settings.former_endpoints),
        )

    @staticmethod
    def launch_body(payload: dict[str, Any], policy: Policy) -> dict[str, Any]:
        """The request of `/run`. See `HttpLauncher.launch_body`."""
        # It POSTs there when the job has ended, and tries twice more; it does not sign, so the URL does.
        told = {"webhook": policy.wake_url} if policy.wake_url else {}
        return {
            "input": payload,
            **told,
            "policy": {
                "executionTimeout": int(min(policy.execution_seconds, MAX_POLICY_SECONDS) * 1000),
                "ttl": int(min(policy.ttl_seconds, MAX_POLICY_SECONDS) * 1000),
            },
        }

    @staticmethod
    def explain_refusal(status: int) -> str:
        """See `HttpLauncher.explain_refusal`."""
        return {
            400: "RunPod refused the request (400): the payload or its policy is not valid",
            401: "RunPod refused the API key (401): check GPU_CLUSTER_API_KEY",
            403: "RunPod refused the API key (403): it may not use this endpoint",
            404: "RunPod knows no such endpoint, or the key does not belong to it (404)",
            413: "RunPod refused the request (413): it is larger than 10 MB",
        }.get(status, f"RunPod refused the request ({status})")

    @staticmethod
    async def read_observation(answer: Answer) -> Observation:
        """See `HttpLauncher.read_observation`."""
        return await read_observation(answer)

    @staticmethod
    async def read_health(answer: Answer) -> EndpointHealth:
        """See `HttpLauncher.read_health`."""
        body = await answer.json()
        return _read_health(body["workers"], body["jobs"])


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
