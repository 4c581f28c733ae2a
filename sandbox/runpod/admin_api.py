"""Controls the endpoints over HTTP, for tests that run in another process.

    GET, POST, DELETE /sandbox/faults     list the armed faults; arm one (`faults.Fault` as JSON); disarm all
    GET  /sandbox/ledger                  launches, executions, calls
    GET  /sandbox/orphans                 jobs that are queued or being executed
    GET, PATCH /sandbox/workers           the processes; {"max": n, "throttled": bool} of the first endpoint
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

from sandbox.runpod.faults import Fault
from sandbox.runpod.platform import Platform
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

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

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
        faults = self._platform.faults
        if request.method == "DELETE":
            faults.clear()
        elif request.method == "POST":
            try:
                return JSONResponse({"number": faults.arm(Fault.model_validate_json(await request.body()))})
            except ValidationError as error:
                return _refuse(error)
        return JSONResponse(faults.as_json())

    async def _ledger(self, _: Request) -> Response:
        return JSONResponse(self._platform.ledger.as_json())

    async def _orphans(self, _: Request) -> Response:
        return JSONResponse([asdict(execution) for execution in self._platform.orphans()])

    async def _workers(self, request: Request) -> Response:
        if request.method == "PATCH":
            try:
                wanted = _Workers.model_validate_json(await request.body())
            except ValidationError as error:
                return _refuse(error)
            self._platform.set_workers(max_workers=wanted.max, throttled=wanted.throttled)
        return JSONResponse([{"id": name, "state": state} for name, state in self._platform.states().items()])

    async def _kill(self, request: Request) -> Response:
        self._platform.kill_worker(request.path_params["worker_id"])
        return Response(status_code=204)

    async def _clock(self, request: Request) -> Response:
        try:
            self._platform.clock.advance(_Advance.model_validate_json(await request.body()).advance_seconds)
        except ValidationError as error:
            return _refuse(error)
        return Response(status_code=204)


def _refuse(error: ValidationError) -> Response:
    problem = error.errors(include_url=False)[0]
    return error_answer(400, f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}")
