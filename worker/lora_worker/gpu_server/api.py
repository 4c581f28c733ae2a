"""The HTTP API of a GPU server. Everything but `/healthz` needs the key; sizes and numbers are bounded."""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import uuid4

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from lora_contract.words import fault_words
from lora_worker.errors import ServerBusyError
from lora_worker.gpu_server.jobs import Job, Jobs
from lora_worker.gpu_server.runner import Runner
from lora_worker.launchers.gpu_server.launcher import MAX_LAUNCH_SECONDS
from lora_worker.launchers.http_launcher import MAX_REQUEST_BYTES

_BUSY_SECONDS = 60
_MAX_LOG_LINES = 2000
_MAX_RUN_ID_CHARACTERS = 400
_WEBHOOK = re.compile(r"https://[!-~]+")
_PROGRESS_KEYS = ("progress", "current_epoch", "current_step", "total_steps", "stage", "metrics")

_Answering = Callable[[Request], Awaitable[Response]]


class _Policy(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    execution_seconds: Annotated[float, Field(gt=0, le=MAX_LAUNCH_SECONDS)] = MAX_LAUNCH_SECONDS
    ttl_seconds: Annotated[float, Field(gt=0, le=MAX_LAUNCH_SECONDS)] = MAX_LAUNCH_SECONDS


class _Submission(BaseModel):
    model_config = ConfigDict(extra="ignore")

    input: dict[str, Any]
    """The request, as the trainer's handler takes it."""
    policy: _Policy = _Policy()
    webhook: Annotated[str, Field(max_length=500)] | None = None
    """Who is told when the job begins and when it ends."""

    @field_validator("webhook")
    @classmethod
    def _check_webhook(cls, url: str | None) -> str | None:
        if url is not None and not _WEBHOOK.fullmatch(url):
            raise ValueError("must be an address that begins with https://")
        return url


@dataclass(frozen=True, slots=True)
class GpuServerApi:
    """The routes over the jobs and what runs. `now` is in Unix seconds."""

    jobs: Jobs
    runner: Runner
    key: str
    gpus: int
    now: Callable[[], float]

    def app(self) -> Starlette:
        """The application."""
        return Starlette(
            routes=[
                Route("/training/submit", self._guarded(self.submit), methods=["POST"]),
                Route("/training/status/{job_id:str}", self._guarded(self.status)),
                Route("/training/cancel/{job_id:str}", self._guarded(self.cancel), methods=["POST"]),
                Route("/training/logs/{job_id:str}", self._guarded(self.logs)),
                Route("/health", self._guarded(self.health)),
                Route("/metrics", self._guarded(self.metrics)),
                Route("/healthz", self.healthz),
            ],
            exception_handlers={HTTPException: _refuse},
        )

    def _guarded(self, answer: _Answering) -> _Answering:
        async def guarded(request: Request) -> Response:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.key.encode()):
                raise HTTPException(401, "the key is missing or wrong")
            return await answer(request)

        return guarded

    async def submit(self, request: Request) -> Response:
        """Take a job. A run that is live here already is not started twice."""
        given = _parse_submission(await _read_body(request))
        # An errand belongs to no run, and is another one each time.
        run_id = given.input.get("run_id") or f"errand-{uuid4().hex}"
        if not isinstance(run_id, str) or len(run_id) > _MAX_RUN_ID_CHARACTERS:
            raise HTTPException(400, f"input.run_id: is no text of up to {_MAX_RUN_ID_CHARACTERS} characters")
        try:
            job_id = self.jobs.submit(
                run_id,
                given.input,
                execution_seconds=given.policy.execution_seconds,
                ttl_seconds=given.policy.ttl_seconds,
            )
        except ServerBusyError as error:
            raise HTTPException(429, str(error), {"retry-after": str(_BUSY_SECONDS)}) from None
        if given.webhook:
            self.runner.callbacks.keep(job_id, given.webhook)
        self.runner.look()
        return JSONResponse({"external_job_id": job_id}, 201)

    async def status(self, request: Request) -> Response:
        """Tell of a job: its state, what its trainer said last, and after its end the result."""
        job = self._job_of(request)
        live = self.runner.live.get(job.id)
        output = live.said if live else job.output
        said = output if isinstance(output, dict) else {}
        return JSONResponse(
            {
                "external_job_id": job.id,
                "status": job.state,
                **{key: said.get(key) for key in _PROGRESS_KEYS},
                "output": output,
                "cause": job.cause or "unknown",
                "error": job.error,
                "execution_seconds": round(self.runner.seconds_of(job), 3),
                "queue_seconds": round(max((job.started_at or self.now()) - job.submitted_at, 0), 3),
                "starts": job.starts,
                "gpu": job.gpu,
            }
        )

    async def cancel(self, request: Request) -> Response:
        """Cancel a job. A running one is cancelled when its process has ended, which the status tells."""
        job = self.jobs.cancel(self._job_of(request).id)
        self.runner.look()
        assert job is not None
        return JSONResponse({"external_job_id": job.id, "status": job.state})

    async def logs(self, request: Request) -> Response:
        """The last lines that a job's trainer has printed."""
        job = self._job_of(request)
        try:
            text = self.runner.log_of(job.id).read_text(errors="replace")
        except OSError:
            text = ""
        lines = text.splitlines()[-_MAX_LOG_LINES:]
        return PlainTextResponse("".join(f"{line}\n" for line in lines))

    async def health(self, _: Request) -> Response:
        """How many GPUs there are, how many work, and how many jobs wait."""
        return JSONResponse(
            {
                "gpus": self.gpus,
                "running": len(self.runner.live),
                "queued": self.jobs.count("queued"),
                "problem": self.runner.problem,
            }
        )

    async def metrics(self, _: Request) -> Response:
        """The same for Prometheus, and how the jobs of the last week ended."""
        registry = CollectorRegistry()
        Gauge("gpu_server_gpus", "GPUs that it serves", registry=registry).set(self.gpus)
        by_state = Gauge("gpu_server_jobs", "Jobs of the last seven days", ["state"], registry=registry)
        for state in ("queued", "running", "completed", "failed", "cancelled", "timed_out"):
            by_state.labels(state).set(self.jobs.count(state))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def healthz(self, _: Request) -> Response:
        """Tell that the server is alive, and nothing else, to whoever asks."""
        return PlainTextResponse("ok\n")

    def _job_of(self, request: Request) -> Job:
        job = self.jobs.find(request.path_params["job_id"][:255])
        if job is None:
            raise HTTPException(404, "there is no such job")
        return job


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_REQUEST_BYTES:
            raise HTTPException(413, f"the request is larger than {MAX_REQUEST_BYTES} bytes")
    return bytes(body)


def _parse_submission(body: bytes) -> _Submission:
    """Parse a request, by its keys and never by its values in what is said of a fault."""
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        return _Submission.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the request"
        raise HTTPException(400, f"{place}: {fault_words(problem['type'], problem['msg'])}") from None
    except (ValueError, RecursionError):
        raise HTTPException(400, "the request is not a JSON object") from None


def _refuse_constant(_: str) -> float:
    raise ValueError("JSON has no NaN and no infinity")


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=dict(error.headers or {}))
