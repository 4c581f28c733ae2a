"""The REST API over HTTP: keys, rate limit, faults and the record of writes around the calls of the account."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.runpod.faults import Faults
from sandbox.runpod.keys import Keys, Rights
from sandbox.runpod.ledger import Ledger, Write
from sandbox.runpod.rest.account import Account, find
from sandbox.runpod.rest.catalog import Catalog
from sandbox.runpod.rest.problems import ProblemError, problem_answer
from sandbox.runpod.rest.quota import Quota
from sandbox.runpod.rest.requests import (
    Body,
    CreateEndpoint,
    CreateRegistry,
    CreateTemplate,
    CreateVolume,
    DataCenterQuery,
    GpuQuery,
    Query,
    UpdateEndpoint,
    UpdateTemplate,
    UpdateVolume,
    parse_body,
    parse_query,
)
from sandbox.runpod.wire import answer_with

_BODY_LIMIT_BYTES = 1024 * 1024
_SECRET_FIELDS = frozenset({"username", "password"})
_WRITES = frozenset({"POST", "PATCH", "DELETE"})
_OF_ITS_POD = frozenset({"getPod", "deletePod", "podAction"})
"""What a pod's own key may do, with its pod. RunPod documents its purpose, not its rights."""


@dataclass(frozen=True)
class Call:
    """What an operation gets: the ids of the path, the headers, the checked body and the checked query."""

    ids: dict[str, str]
    headers: Mapping[str, str]
    body: Any = None
    query: Any = None

    @property
    def id(self) -> str:
        """The id of the resource in the path."""
        return self.ids["id"]


@dataclass(frozen=True)
class Operation:
    """An operation of the API. `name` is RunPod's name for it, under which faults are armed and calls are counted."""

    name: str
    method: str
    path: str
    carry_out: Callable[[Call], Any]
    """Returns the answer: JSON, None for an answer without body, or a whole response."""
    body: type[Body] | None = None
    query: type[BaseModel] = Query

    @property
    def creates(self) -> bool:
        """Whether its answer is 201."""
        return self.method == "POST" and self.name != "podAction"


def account_operations(account: Account) -> list[Operation]:
    """Return the operations on everything that is stored, and on the catalog."""
    return [
        *_endpoint_operations(account),
        *_template_operations(account),
        *_volume_operations(account),
        *_registry_operations(account),
        *_catalog_operations(account.catalog),
    ]


def _endpoint_operations(account: Account) -> list[Operation]:
    endpoints, one = account.endpoints, "serverless/{id}"
    return [
        Operation("listEndpoints", "GET", "serverless", lambda _: {"endpoints": [e.shown for e in endpoints.all()]}),
        Operation("createEndpoint", "POST", "serverless", lambda c: account.create_endpoint(c.body), CreateEndpoint),
        Operation("getEndpoint", "GET", one, lambda c: endpoints.get(c.id).shown),
        Operation("updateEndpoint", "PATCH", one, lambda c: account.update_endpoint(c.id, c.body), UpdateEndpoint),
        Operation("deleteEndpoint", "DELETE", one, lambda c: account.delete_endpoint(c.id)),
    ]


def _template_operations(account: Account) -> list[Operation]:
    templates, one = account.templates, "templates/{id}"
    return [
        Operation("listTemplates", "GET", "templates", lambda _: {"templates": [*templates.values()]}),
        Operation("createTemplate", "POST", "templates", lambda c: account.create_template(c.body), CreateTemplate),
        Operation("getTemplate", "GET", one, lambda c: find(templates, c.id, "template")),
        Operation("updateTemplate", "PATCH", one, lambda c: account.update_template(c.id, c.body), UpdateTemplate),
        Operation("deleteTemplate", "DELETE", one, lambda c: account.delete_template(c.id)),
    ]


def _volume_operations(account: Account) -> list[Operation]:
    volumes, all_, one = account.volumes, "network-volumes", "network-volumes/{id}"
    return [
        Operation("listNetworkVolumes", "GET", all_, lambda _: {"networkVolumes": [*volumes.values()]}),
        Operation("createNetworkVolume", "POST", all_, lambda c: account.create_volume(c.body), CreateVolume),
        Operation("getNetworkVolume", "GET", one, lambda c: find(volumes, c.id, "network volume")),
        Operation("updateNetworkVolume", "PATCH", one, lambda c: account.update_volume(c.id, c.body), UpdateVolume),
        Operation("deleteNetworkVolume", "DELETE", one, lambda c: account.delete_volume(c.id)),
    ]


def _registry_operations(account: Account) -> list[Operation]:
    registries, one = account.registries, "registries/{id}"
    return [
        Operation("listRegistries", "GET", "registries", lambda _: {"registries": [*registries.values()]}),
        Operation("createRegistry", "POST", "registries", lambda c: account.create_registry(c.body), CreateRegistry),
        Operation("getRegistry", "GET", one, lambda c: find(registries, c.id, "registry")),
        Operation("deleteRegistry", "DELETE", one, lambda c: account.delete_registry(c.id)),
    ]


def _catalog_operations(catalog: Catalog) -> list[Operation]:
    gpus, centers = "catalog/gpus", "catalog/datacenters"
    return [
        Operation("listGpuTypes", "GET", gpus, lambda c: catalog.list_gpus(c.query), query=GpuQuery),
        Operation("getGpuType", "GET", f"{gpus}/{{id}}", lambda c: catalog.gpu(c.id, c.query), query=GpuQuery),
        Operation(
            "listDataCenters", "GET", centers, lambda c: catalog.list_data_centers(c.query), query=DataCenterQuery
        ),
    ]


class RestApi:
    """Serves the operations. Everything that the API refuses is a problem of RFC 9457."""

    def __init__(self, keys: Keys, quota: Quota, faults: Faults, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._keys = keys
        self._quota = quota
        self._faults = faults
        self._ledger = ledger
        self._clock = clock

    def serve(self, app: Starlette, operations: list[Operation]) -> None:
        """Add the operations to an application."""
        app.router.routes.extend(self._route(operation) for operation in operations)
        app.router.redirect_slashes = False
        app.add_exception_handler(HTTPException, self._refuse_route)

    def _route(self, operation: Operation) -> Route:
        async def carry_out(request: Request) -> Response:
            try:
                return await self._answer(operation, request)
            except ProblemError as problem:
                return problem.answer()

        async def record(request: Request) -> Response:
            response = await carry_out(request)
            if operation.method in _WRITES:
                body = getattr(request.state, "body", None)
                write = Write(operation.name, request.url.path, response.status_code, self._clock(), body)
                self._ledger.writes.append(write)
            return response

        async def answer(request: Request) -> Response:
            self._ledger.calls[operation.name] += 1
            rights = self._keys.rights_of(request.headers.get("authorization"))
            if rights is None:
                return problem_answer(401, "The bearer token is missing or not valid.")
            headers, exceeded = self._quota.take(request.headers["authorization"])
            if exceeded is not None:
                return problem_answer(429, f"The limit of the {exceeded} is exceeded.", headers)
            if rights is Rights.POD:
                may = operation.name in _OF_ITS_POD and request.path_params.get("id") == self._keys.pod_of(
                    request.headers["authorization"]
                )
            else:
                may = rights is Rights.ALL or (rights is Rights.READ and operation.method not in _WRITES)
            if not may:
                response = problem_answer(403, "The key has no right to do this.")
            else:
                fault = self._faults.draw(operation.name)
                response = await answer_with(fault, request, record, refuse=problem_answer)
            response.headers.update(headers)
            response.headers["date"] = formatdate(self._clock(), usegmt=True)
            return response

        # A GPU type's id has spaces but no slash, so every id is one segment of the path.
        return Route(f"/v2/{operation.path}", answer, methods=[operation.method])

    async def _answer(self, operation: Operation, request: Request) -> Response:
        query = parse_query(operation.query, dict(request.query_params))
        content = await request.body()
        if len(content) > _BODY_LIMIT_BYTES:
            raise ProblemError(413, "The body is too large.")
        if operation.body is None and content:
            raise ProblemError(400, "This operation takes no body.")
        body = None
        if operation.body is not None:
            if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                raise ProblemError(415, "The Content-Type must be application/json.")
            body = parse_body(operation.body, content)
            request.state.body = {name: value for name, value in body.given().items() if name not in _SECRET_FIELDS}
        answer = operation.carry_out(Call(request.path_params, request.headers, body, query))
        if isinstance(answer, Response):
            return answer
        if answer is None:
            return Response(status_code=204)
        return JSONResponse(answer, 201 if operation.creates else 200)

    async def _refuse_route(self, request: Request, error: Exception) -> Response:
        if self._keys.rights_of(request.headers.get("authorization")) is None:
            return problem_answer(401, "The bearer token is missing or not valid.")
        assert isinstance(error, HTTPException)
        return problem_answer(error.status_code, "There is no such operation.", error.headers)
