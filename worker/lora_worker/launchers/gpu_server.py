"""A GPU machine of one's own, through the contract that `lora-worker gpu-server` serves (docs/gpu-server.md).

    POST /training/submit        {"input": …, "policy": {"execution_seconds", "ttl_seconds"}} → {"external_job_id"}
    GET  /training/status/<id>   {status, progress, current_epoch, current_step, stage, metrics, output, …}
    POST /training/cancel/<id>
    GET  /health                 {"gpus", "running", "queued", "problem"}

A run that is live there is not started twice: a second submission of it is answered with the id of the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_contract.bounds import Count, Seconds, Sentence
from lora_contract.connections import why_unreachable
from lora_worker.errors import LaunchInDoubtError, LaunchRefusedError
from lora_worker.launchers.addresses import Addresses
from lora_worker.launchers.answers import Answer
from lora_worker.launchers.base import EndCause, EndpointHealth, Guide, LaunchRef, LaunchState, Observation, Policy
from lora_worker.launchers.gpu_server_settings import GpuServerSettings
from lora_worker.launchers.http_calls import HttpCalls
from lora_worker.launchers.limits import CallLimit

MAX_REQUEST_BYTES = 10_000_000
"""The largest request that a GPU server takes."""
MAX_LAUNCH_SECONDS = 30 * 86_400
"""No launch waits and trains longer than this there, whatever its policy says."""

_GUIDE = Guide(
    title="The GPU server",
    console="the log of `lora-worker gpu-server`",
    check="check LORA_WORKER_GPU_SERVER_URL and LORA_WORKER_GPU_SERVER_KEY, and that the server runs",
    former_endpoint="start it again, or name it in LORA_WORKER_FORMER_GPU_SERVERS; its runs are neither ended nor "
    "billed before",
)
_SERVICE = _GUIDE.title
_CLOCK_DOUBT_SECONDS = 86_400.0
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
_ELSEWHERE = (
    "it is at another server than LORA_WORKER_GPU_SERVER_URL, and the key is not sent there: "
    "name it in LORA_WORKER_FORMER_GPU_SERVERS while launches of its time live"
)
_MOST_SIDE_BY_SIDE, _MOST_IN_TEN_SECONDS = 16, 400


def most_connections(settings: GpuServerSettings) -> int:
    """How many calls may be under way at the same time."""
    return 4 * min(settings.launcher_concurrency, _MOST_SIDE_BY_SIDE)


def _explain_refusal(status: int) -> str:
    return {
        400: "The GPU server refused the request (400): it is not what this server takes",
        401: "The GPU server refused the key (401): check LORA_WORKER_GPU_SERVER_KEY",
        403: "The GPU server refused the key (403): check LORA_WORKER_GPU_SERVER_KEY",
        404: "There is no GPU server at LORA_WORKER_GPU_SERVER_URL (404)",
        413: "The GPU server refused the request (413): it is larger than 10 MB",
    }.get(status, f"The GPU server refused the request ({status})")


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


class GpuServerLauncher:
    """The GPU server where launches go, and former ones that a setting names."""

    name = "gpu-server"
    guide = _GUIDE
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
        self._addresses = Addresses(url, former)
        self.endpoint = self._addresses.present
        most = min(concurrency, _MOST_SIDE_BY_SIDE)
        operations = ("submit", "status", "cancel", "health")
        limits = {name: CallLimit(most=most, calls=_MOST_IN_TEN_SECONDS) for name in operations}
        self._calls = HttpCalls(http, key, service=_SERVICE, limits=limits)

    @classmethod
    def open(cls, settings: GpuServerSettings, http: httpx.AsyncClient) -> GpuServerLauncher:
        """The launcher of these settings."""
        return cls(
            settings.gpu_server_url,
            settings.gpu_server_key.get_secret_value(),
            http=http,
            concurrency=settings.launcher_concurrency,
            former=settings.former_gpu_servers,
        )

    async def launch(self, payload: dict[str, Any], policy: Policy) -> str:
        """POST `/training/submit`. See `Launcher.launch`."""
        limits = {
            "execution_seconds": min(policy.execution_seconds, MAX_LAUNCH_SECONDS),
            "ttl_seconds": min(policy.ttl_seconds, MAX_LAUNCH_SECONDS),
        }
        content = json.dumps({"input": payload, "policy": limits}, allow_nan=False).encode()
        if len(content) > MAX_REQUEST_BYTES:
            raise LaunchRefusedError(_SERVICE, "the job's request is larger than a GPU server's 10 MB", status=413)
        url = f"{self.endpoint}/training/submit"
        answer = await self._calls.post_launch("submit", url, content, explain=_explain_refusal)
        try:
            external_job_id = (await answer.json())["external_job_id"]
        except (ValueError, KeyError, TypeError, RecursionError):
            external_job_id = None
        if not isinstance(external_job_id, str) or not _JOB_ID.fullmatch(external_job_id):
            raise LaunchInDoubtError(_SERVICE, "the GPU server's answer to the launch holds no usable id")
        return external_job_id

    async def observe(self, launch: LaunchRef) -> Observation:
        """GET `/training/status/<id>`. See `Launcher.observe`."""
        if not _JOB_ID.fullmatch(launch.external_job_id):
            return Observation(LaunchState.MISSING, reason="no id that a GPU server gives")
        base = self._addresses.of(launch.endpoint)
        if base is None:
            return Observation(LaunchState.UNKNOWN, reason=_ELSEWHERE)
        return await self._calls.look(
            "status",
            f"{base}/training/status/{launch.external_job_id}",
            explain=_explain_refusal,
            read=_read_status,
            health=lambda: self.health(base),
        )

    async def cancel(self, launch: LaunchRef) -> bool:
        """POST `/training/cancel/<id>`, a few times. See `Launcher.cancel`."""
        if not _JOB_ID.fullmatch(launch.external_job_id):
            return True
        base = self._addresses.of(launch.endpoint)
        if base is None:
            return False
        return await self._calls.post_cancel("cancel", f"{base}/training/cancel/{launch.external_job_id}")

    async def health(self, endpoint: str | None = None) -> EndpointHealth:
        """GET `/health`. See `Launcher.health`."""
        base = self._addresses.of(endpoint)
        if base is None:
            return EndpointHealth(False, 0, 0, _ELSEWHERE)
        try:
            answer = await self._calls.send("health", "GET", f"{base}/health")
        except httpx.HTTPError as error:
            return EndpointHealth(False, 0, 0, f"The GPU server is not reachable: {why_unreachable(error)}")
        if answer.status_code != 200:
            return EndpointHealth(False, 0, 0, _explain_refusal(answer.status_code))
        try:
            return _read_health(_Health.model_validate(await answer.json()))
        except (ValueError, RecursionError):
            return EndpointHealth(False, 0, 0, "The GPU server's answer to /health is not readable")


async def _read_status(answer: Answer) -> Observation:
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


def _read_health(seen: _Health) -> EndpointHealth:
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
