"""Controls the endpoint over HTTP, for tests that run in another process.

    GET, POST, DELETE /sandbox/faults     list the armed faults; arm one (`faults.Fault` as JSON); disarm all
    GET  /sandbox/ledger                  launches, executions, calls
    GET  /sandbox/orphans                 jobs that are queued or being executed
    GET, PATCH /sandbox/workers           the processes; {"max": n, "throttled": bool}
    POST /sandbox/workers/{id}/kill       SIGKILL
    POST /sandbox/clock                   {"advance_seconds": n}

These routes are at the address for workers, which can be reached even while the public one refuses connections. They
need no key: everybody who can reach 127.0.0.1 could end these processes anyway.
"""

from __future__ import annotations

from dataclasses import asdict

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.runpod.endpoint import Endpoint
from sandbox.runpod.faults import Fault
from sandbox.runpod.wire import error_answer


class _Workers(BaseModel):
    model_config = ConfigDict(extra="forbid")
    max: int | None = Field(default=None, ge=0)
    throttled: bool | None = None


class _Advance(BaseModel):
    model_config = ConfigDict(extra="forbid")
    advance_seconds: float = Field(gt=0)


class AdminApi:
    """The routes under `/sandbox`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def routes(self) -> list[Route]:
        """Return all routes."""
        return [
            Route("/sandbox/faults", self._faults, methods=["GET", "POST", "DELETE"]),
            Route("/sandbox/ledger", self._ledger),
            Route("/sandbox/orphans", self._orphans),
            Route("/sandbox/workers", self._workers, methods=["GET", "PATCH"]),
            Route("/sandbox/workers/{worker_id}/kill", self._kill, methods=["POST"]),
            Route("/sandbox/clock", self._clock, methods=["POST"]),
        ]

    async def _faults(self, request: Request) -> Response:
        faults = self._endpoint.faults
        if request.method == "DELETE":
            faults.clear()
        elif request.method == "POST":
            try:
                return JSONResponse({"number": faults.arm(Fault.model_validate_json(await request.body()))})
            except ValidationError as error:
                return _refuse(error)
        return JSONResponse(faults.as_json())

    async def _ledger(self, _: Request) -> Response:
        return JSONResponse(self._endpoint.ledger.as_json())

    async def _orphans(self, _: Request) -> Response:
        return JSONResponse([asdict(execution) for execution in self._endpoint.orphans()])

    async def _workers(self, request: Request) -> Response:
        pool = self._endpoint.pool
        if request.method == "PATCH":
            try:
                wanted = _Workers.model_validate_json(await request.body())
            except ValidationError as error:
                return _refuse(error)
            self._endpoint.set_workers(max_workers=wanted.max, throttled=wanted.throttled)
        busy = self._endpoint.busy()
        return JSONResponse([{"id": worker.id, "state": pool.state(worker, busy)} for worker in pool.all()])

    async def _kill(self, request: Request) -> Response:
        self._endpoint.pool.kill(request.path_params["worker_id"])
        return Response(status_code=204)

    async def _clock(self, request: Request) -> Response:
        try:
            self._endpoint.clock.advance(_Advance.model_validate_json(await request.body()).advance_seconds)
        except ValidationError as error:
            return _refuse(error)
        return Response(status_code=204)


def _refuse(error: ValidationError) -> Response:
    problem = error.errors(include_url=False)[0]
    return error_answer(400, f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}")
