"""RunPod's serverless API for callers: `/v2/{endpoint}/run`, `/status/{id}` and others."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.runpod.endpoint import Endpoint
from sandbox.runpod.jobs import BadRequestError, UnknownJobError
from sandbox.runpod.keys import Keys, Rights
from sandbox.runpod.platform import Platform
from sandbox.runpod.wire import BodyTooLargeError, answer_with, error_answer, read_json

_RUN_LIMIT_BYTES = 10 * 1024 * 1024
_RUNSYNC_LIMIT_BYTES = 20 * 1024 * 1024
_SYNC_WAIT_MS = (1_000, 90_000, 300_000)
"""The shortest, the default and the longest wait of `/runsync`, in milliseconds."""
_RATE_WINDOW_SECONDS = 10.0

Step = Callable[[Request, Endpoint], Awaitable[Response]]


class PublicApi:
    """The routes of all endpoints, protected by keys and rate limits."""

    def __init__(self, platform: Platform, keys: Keys) -> None:
        self._platform = platform
        self._keys = keys
        self._recent: defaultdict[tuple[str, str], deque[float]] = defaultdict(deque)

    def routes(self) -> list[Route]:
        """Return all routes under `/v2/{endpoint}`."""
        return [
            self._route("run", "POST", _run),
            self._route("runsync", "POST", _runsync),
            self._route("status", "GET", _status, "/{job_id}"),
            self._route("stream", "GET", _stream, "/{job_id}"),
            self._route("cancel", "POST", _cancel, "/{job_id}"),
            self._route("retry", "POST", _retry, "/{job_id}"),
            self._route("health", "GET", _health),
            self._route("requests", "GET", _requests),
            self._route("purge-queue", "POST", _purge),
        ]

    def _route(self, operation: str, method: str, handle: Step, rest: str = "") -> Route:
        async def checked(request: Request) -> Response:
            endpoint = self._platform.get(request.path_params["endpoint"])
            refusal = self._refusal(operation, request, endpoint)
            if refusal is not None or endpoint is None:
                return refusal or JSONResponse({"detail": "endpoint not found"}, 404)
            try:
                return await handle(request, endpoint)
            except UnknownJobError:
                return error_answer(404, "job not found")
            except BodyTooLargeError as error:
                return error_answer(413, str(error))
            except BadRequestError as error:
                return error_answer(400, str(error))

        async def answer(request: Request) -> Response:
            self._platform.ledger.calls[operation] += 1
            job_id = request.path_params.get("job_id")
            fault = self._platform.faults.draw(operation, job_id=job_id)
            endpoint = self._platform.get(request.path_params["endpoint"])
            if fault is not None and fault.action == "forget" and job_id is not None and endpoint is not None:
                endpoint.jobs.forget(job_id)
            return await answer_with(fault, request, checked)

        return Route(f"/v2/{{endpoint}}/{operation}{rest}", answer, methods=[method])

    def _refusal(self, operation: str, request: Request, endpoint: Endpoint | None) -> Response | None:
        rights = self._keys.rights_of(request.headers.get("authorization"))
        if rights is None:
            return error_answer(401, "unauthorized")
        if rights is Rights.READ and request.method == "POST":
            return error_answer(403, "forbidden")
        if endpoint is not None and self._is_too_fast(operation, endpoint):
            seconds = endpoint.settings.retry_after_seconds
            headers = None if seconds is None else {"retry-after": str(seconds)}
            return error_answer(429, "too many requests", headers)
        return None

    def _is_too_fast(self, operation: str, endpoint: Endpoint) -> bool:
        limit = endpoint.settings.rate_limits.get(operation)
        if limit is None:
            return False
        now, recent = endpoint.clock(), self._recent[endpoint.settings.endpoint, operation]
        while recent and recent[0] <= now - _RATE_WINDOW_SECONDS:
            recent.popleft()
        if len(recent) >= limit:
            return True
        recent.append(now)
        return False


async def _run(request: Request, endpoint: Endpoint) -> Response:
    _require_json(request)
    job = endpoint.jobs.submit(await read_json(request, limit_bytes=_RUN_LIMIT_BYTES))
    endpoint.react()
    return JSONResponse({"id": job.id, "status": job.status})


async def _runsync(request: Request, endpoint: Endpoint) -> Response:
    least, default, most = _SYNC_WAIT_MS
    try:
        wait_ms = min(max(int(request.query_params.get("wait", default)), least), most)
    except ValueError:
        raise BadRequestError("wait must be whole milliseconds") from None
    body = await read_json(request, limit_bytes=_RUNSYNC_LIMIT_BYTES)
    job = endpoint.jobs.submit(body, sync=True)
    endpoint.react()
    await endpoint.wait_for_end(job, wait_ms / 1000)
    return JSONResponse(job.answer(endpoint.clock()))


async def _status(request: Request, endpoint: Endpoint) -> Response:
    job = endpoint.jobs.get(request.path_params["job_id"])
    return JSONResponse(job.answer(endpoint.clock()))


async def _stream(request: Request, endpoint: Endpoint) -> Response:
    job = endpoint.jobs.get(request.path_params["job_id"])
    chunks, job.chunks = job.chunks, []
    return JSONResponse({"status": job.status, "stream": chunks})


async def _cancel(request: Request, endpoint: Endpoint) -> Response:
    job = endpoint.jobs.cancel(request.path_params["job_id"])
    endpoint.react()
    return JSONResponse({"id": job.id, "status": job.status})


async def _retry(request: Request, endpoint: Endpoint) -> Response:
    job = endpoint.jobs.retry(request.path_params["job_id"])
    endpoint.react()
    return JSONResponse({"id": job.id, "status": job.status})


async def _health(_: Request, endpoint: Endpoint) -> Response:
    workers = endpoint.pool.counts(endpoint.busy())
    return JSONResponse({"jobs": endpoint.jobs.counts(), "workers": workers})


async def _requests(_: Request, endpoint: Endpoint) -> Response:
    # RunPod documents that this call exists, but not its answer, so our code must not depend on it.
    now = endpoint.clock()
    return JSONResponse({"requests": [job.answer(now) for job in endpoint.jobs.all()]})


async def _purge(_: Request, endpoint: Endpoint) -> Response:
    removed = endpoint.jobs.purge()
    endpoint.react()
    return JSONResponse({"removed": removed, "status": "completed"})


def _require_json(request: Request) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise BadRequestError("the Content-Type must be application/json")
