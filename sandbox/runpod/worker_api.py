"""The API that RunPod's SDK calls inside a worker: job-take, job-done, job-stream, job-stop and ping."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.runpod.endpoint import Endpoint
from sandbox.runpod.faults import Fault
from sandbox.runpod.jobs import BadRequestError
from sandbox.runpod.platform import Platform
from sandbox.runpod.pool import Worker
from sandbox.runpod.wire import BodyTooLargeError, answer_with, break_connection, error_answer, read_json

_BODY_LIMIT_BYTES = 10 * 1024 * 1024

Step = Callable[[Request, Endpoint, Worker, Fault | None], Awaitable[Response]]


class WorkerApi:
    """The routes for workers, protected by the workers' key."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def routes(self) -> list[Route]:
        """Return all routes under `/worker`."""
        return [
            self._route("job-take", "GET", _take, ""),
            self._route("job-stop", "GET", _stop, ""),
            self._route("job-done", "POST", _done, "/{job_id}"),
            self._route("job-stream", "POST", _stream, "/{job_id}"),
            self._route("ping", "GET", _ping, ""),
        ]

    def _route(self, path: str, method: str, step: Step, rest: str) -> Route:
        async def answer(request: Request) -> Response:
            operation = "progress" if path == "job-done" and await _is_progress(request) else path
            # The SDK sends its key without "Bearer".
            found = self._platform.worker(request.path_params["worker_id"])
            if found is None or request.headers.get("authorization") != found[0].wire.key:
                return error_answer(401, "unauthorized")
            endpoint, worker = found
            if worker.killed:
                return await break_connection(request)
            endpoint.ledger.calls[operation] += 1
            job_id = request.path_params.get("job_id")
            fault = endpoint.faults.draw(operation, job_id=job_id, worker_id=worker.id)
            return await answer_with(fault, request, lambda request: step(request, endpoint, worker, fault))

        return Route(f"/worker/{path}/{{worker_id}}{rest}", answer, methods=[method])


async def _take(request: Request, endpoint: Endpoint, worker: Worker, _: Fault | None) -> Response:
    has_job = request.query_params.get("job_in_progress") == "1"
    job = await endpoint.next_job(worker, has_job=has_job)
    return Response(status_code=204) if job is None else JSONResponse(job)


async def _stop(_: Request, endpoint: Endpoint, worker: Worker, __: Fault | None) -> Response:
    stops = await endpoint.next_stops(worker)
    return JSONResponse({"jobsToStop": stops}) if stops else Response(status_code=204)


async def _done(request: Request, endpoint: Endpoint, worker: Worker, fault: Fault | None) -> Response:
    try:
        body = await read_json(request, limit_bytes=_BODY_LIMIT_BYTES)
    except (BodyTooLargeError, BadRequestError) as error:
        endpoint.jobs.refuse_result(worker.id, request.path_params["job_id"], "stuck")
        return error_answer(400, str(error))
    job_id = request.path_params["job_id"]
    if body.get("status") == "IN_PROGRESS":
        endpoint.take_progress(worker, job_id, body.get("output"), fault)
    elif not endpoint.take_result(worker, job_id, body, fault):
        return error_answer(400, "the result was refused")
    return Response(status_code=200)


async def _stream(request: Request, endpoint: Endpoint, _: Worker, __: Fault | None) -> Response:
    try:
        chunk = await read_json(request, limit_bytes=_BODY_LIMIT_BYTES)
    except (BodyTooLargeError, BadRequestError) as error:
        return error_answer(400, str(error))
    endpoint.jobs.add_chunk(request.path_params["job_id"], chunk)
    return Response(status_code=200)


async def _ping(_: Request, endpoint: Endpoint, worker: Worker, __: Fault | None) -> Response:
    endpoint.pool.pinged(worker)
    return Response(status_code=200)


async def _is_progress(request: Request) -> bool:
    try:
        body = await read_json(request, limit_bytes=_BODY_LIMIT_BYTES)
    except (BodyTooLargeError, BadRequestError):
        return False
    return isinstance(body, dict) and body.get("status") == "IN_PROGRESS"
