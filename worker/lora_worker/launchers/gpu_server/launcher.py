"""A GPU machine of one's own, through the contract that `lora-worker gpu-server` serves (docs/gpu-server.md).

    POST /training/submit        {"input": …, "policy": {"execution_seconds", "ttl_seconds"}} → {"external_job_id"}
    GET  /training/status/<id>   {status, progress, current_epoch, current_step, stage, metrics, output, …}
    POST /training/cancel/<id>
    GET  /health                 {"gpus", "running", "queued", "problem"}

A run that is live there is not started twice: a second submission of it is answered with the id of the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_contract.bounds import Count, Seconds, Sentence
from lora_worker.errors import SettingsError
from lora_worker.launchers.addresses import Addresses
from lora_worker.launchers.answers import Answer
from lora_worker.launchers.base import EndCause, EndpointHealth, Guide, LaunchState, Observation, Policy
from lora_worker.launchers.gpu_server.settings import GpuServerSettings
from lora_worker.launchers.http_launcher import HttpLauncher
from lora_worker.launchers.limits import CallLimit

MAX_LAUNCH_SECONDS = 30 * 86_400
"""No launch waits and trains longer than this there, whatever its policy says."""

_GUIDE = Guide(
    title="The GPU server",
    console="the log of `lora-worker gpu-server`",
    check="check LORA_WORKER_GPU_SERVER_URL and LORA_WORKER_GPU_SERVER_KEY, and that the server runs",
    former_endpoint="start it again, or name it in LORA_WORKER_FORMER_GPU_SERVERS; its runs are neither ended nor "
    "billed before",
    volume="That is the folder that LORA_TRAINER_VOLUME names for the server, or what is mounted at /runpod-volume or "
    "/workspace there.",
)
_CLOCK_DOUBT_SECONDS = 86_400.0
_ELSEWHERE = (
    "it is at another server than LORA_WORKER_GPU_SERVER_URL, and the key is not sent there: "
    "name it in LORA_WORKER_FORMER_GPU_SERVERS while launches of its time live"
)
_MOST_SIDE_BY_SIDE, _MOST_IN_TEN_SECONDS = 16, 400


def most_connections(settings: GpuServerSettings) -> int:
    """How many calls may be under way at the same time."""
    return 4 * min(settings.launcher_concurrency, _MOST_SIDE_BY_SIDE)


class _Status(BaseModel):
    """The answer of `/training/status/<id>`, as far as the worker reads it: the rest is for other callers."""

    model_config = ConfigDict(extra="ignore")

    status: Literal["queued", "running", "completed", "failed", "cancelled", "timed_out"]
    output: Any = None
    cause: Annotated[EndCause, Field(default=EndCause.UNKNOWN)]
    execution_seconds: Seconds = None
    queue_seconds: Seconds = None


class _Health(BaseModel):
    model_config = ConfigDict(extra="ignore")

    gpus: Count = None
    running: Count = None
    queued: Count = None
    problem: Sentence | None = None


class GpuServerLauncher(HttpLauncher):
    """The GPU server where launches go, and former ones that a setting names."""

    name = "gpu-server"
    guide = _GUIDE
    launch_route, status_route, cancel_route = "training/submit", "training/status", "training/cancel"
    id_key = "external_job_id"
    elsewhere = _ELSEWHERE
    longest_launch_seconds = MAX_LAUNCH_SECONDS + _CLOCK_DOUBT_SECONDS

    def __init__(
        self,
        url: str,
        key: str,
        *,
        http: httpx.AsyncClient,
        concurrency: int = _MOST_SIDE_BY_SIDE,
        former: Iterable[str] = (),
    ) -> None:
        most = min(concurrency, _MOST_SIDE_BY_SIDE)
        operations = ("submit", "status", "cancel", "health")
        limits = {name: CallLimit(most=most, calls=_MOST_IN_TEN_SECONDS) for name in operations}
        super().__init__(Addresses(url, former), key, http=http, limits=limits)

    @classmethod
    def open(
        cls, settings: GpuServerSettings, http: httpx.AsyncClient, endpoint: str | None = None
    ) -> GpuServerLauncher:
        """The launcher of these settings, or of another server with the same key.

        Raises:
            ValueError: that can't be a server's address; the text says why.
            SettingsError: more than one GPU would be billed for a job, and it gets one.
        """
        if settings.endpoint_gpu_count != 1:
            raise SettingsError(
                f"LORA_WORKER_ENDPOINT_GPU_COUNT (gpu_count in a routing table) is {settings.endpoint_gpu_count}, and "
                "a GPU server gives each job one GPU: set it to 1."
            )
        return cls(
            settings.server_address(endpoint) if endpoint else settings.gpu_server_url,
            settings.gpu_server_key.get_secret_value(),
            http=http,
            concurrency=settings.launcher_concurrency,
            former=(settings.gpu_server_url, *settings.former_gpu_servers),
        )

    @staticmethod
    def launch_body(payload: dict[str, Any], policy: Policy) -> dict[str, Any]:
        """The request of `/training/submit`. See `HttpLauncher.launch_body`."""
        limits = {
            "execution_seconds": min(policy.execution_seconds, MAX_LAUNCH_SECONDS),
            "ttl_seconds": min(policy.ttl_seconds, MAX_LAUNCH_SECONDS),
        }
        told = {"webhook": policy.wake_url} if policy.wake_url else {}
        return {"input": payload, "policy": limits, **told}

    @staticmethod
    def explain_refusal(status: int) -> str:
        """See `HttpLauncher.explain_refusal`."""
        return {
            400: "The GPU server refused the request (400): it is not what this server takes",
            401: "The GPU server refused the key (401): check LORA_WORKER_GPU_SERVER_KEY",
            403: "The GPU server refused the key (403): check LORA_WORKER_GPU_SERVER_KEY",
            404: "There is no GPU server at LORA_WORKER_GPU_SERVER_URL (404)",
            413: "The GPU server refused the request (413): it is larger than 10 MB",
        }.get(status, f"The GPU server refused the request ({status})")

    @staticmethod
    async def read_observation(answer: Answer) -> Observation:
        """See `HttpLauncher.read_observation`."""
        try:
            seen = _Status.model_validate(await answer.json())
        except ValidationError as error:
            problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in problem["loc"]) or "answer"
            return Observation(LaunchState.UNKNOWN, reason=f"the answer's {where} can't be read")
        except (ValueError, RecursionError) as error:
            return Observation(LaunchState.UNKNOWN, reason=f"the answer can't be read ({str(error)[:100]})")
        return Observation(
            LaunchState(seen.status),
            output=seen.output,
            cause=seen.cause,
            execution_seconds=seen.execution_seconds,
            queue_seconds=seen.queue_seconds,
        )

    @staticmethod
    async def read_health(answer: Answer) -> EndpointHealth:
        """See `HttpLauncher.read_health`."""
        seen = _Health.model_validate(await answer.json())
        gpus, running = seen.gpus or 0, seen.running or 0
        problem = seen.problem if seen.problem or gpus else "it serves no GPU"
        return EndpointHealth(
            True,
            gpus,
            seen.queued or 0,
            problem,
            ready=max(gpus - running, 0),
            running=running,
            jobs_running=running,
        )
