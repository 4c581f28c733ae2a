"""Calls SQL functions through Supabase's REST API (PostgREST), and turns its error answers into our exceptions.

The calls are made with httpx, because PostgREST's own client hides the status of an error and returns a gateway's page
as if it were the function's answer. No text of the server is used in an exception: it may contain values of rows.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx
from pydantic import TypeAdapter, ValidationError

from lora_contract.connections import why_unreachable
from lora_contract.rest_errors import RestError, read_error
from lora_worker.database.function import Function, T, schema_marker
from lora_worker.database.functions import SCHEMA_VERSION
from lora_worker.errors import (
    SchemaCacheError,
    SchemaMissingError,
    ServiceError,
    ServiceRefusedError,
    ServiceUnavailableError,
    ValueRefusedError,
)
from lora_worker.observability.calls import called

SERVICE = "Supabase's database"
MEND = "run `lora-worker migrate` with this worker's release, or update the worker"

MAX_ANSWER_BYTES = 32 * 1024**2
"""The most bytes of an answer. 500 adopted runs with rows of the largest allowed size fit into it, and the smallest
machine has enough memory for it."""

_RELOAD = "run `notify pgrst, 'reload schema'` in the project's SQL editor"

# There is no such column, or no such function: PostgREST calls a function by its name if it has read of it before.
_NOT_THERE = frozenset({"42703", "42883"})

_MENDED_BY_MIGRATING = {
    "42883": f"a function that it calls is missing; {MEND}",
    "42P01": f"a table that it needs is missing; {MEND}",
    "42703": f"a column that it needs is missing; {MEND}",
    "PGRST203": f"there are two of it, with different arguments; {MEND}",
    "PGRST106": "the project's Data API does not expose the schema public; switch that on in its API settings",
}
# SQLSTATE classes for data exceptions and constraint violations, and the code by which our functions refuse arguments.
_VALUE_CODES = ("22", "23", "PT400")
_NO_RIGHT = "42501"
_READ_ONLY = "25006"
_KEY_CODES = frozenset({"PGRST301", "PGRST302", "PGRST303"})
_TOO_EARLY = re.compile(r"issued at future|not yet valid", re.IGNORECASE)

# Explanations of errors that an operator can do something about.
_PLAIN = {
    "25006": "it is read-only, as a hosted project is whose disk is full",
    "53100": "its disk is full",
    "53300": "it has no connection left",
    "55P03": "a lock was held for too long",
    "57014": "it took longer than the database allows",
    "PGRST002": "the API can't load the schema",
}
_PLAIN_STATUSES = {
    HTTPStatus.PAYMENT_REQUIRED: "the project is restricted; see its dashboard",
    HTTPStatus.NOT_FOUND: "no REST API is there; check SUPABASE_URL",
    540: "the project is paused; see its dashboard",
}

_DENIED = re.compile(r"permission denied for (table|view|materialized view|sequence|schema|function) (\w+)")
_ROW_DENIED = re.compile(r'row-level security policy .*for table "(\w+)"')
_RIGHTS = {"function": "execute on function", "sequence": "usage on sequence", "schema": "usage on schema"}

_ROWS = TypeAdapter(list[dict[str, Any]])


def api_headers(key: str) -> dict[str, str]:
    """Return the headers for a Supabase key. Only a legacy JWT is also sent as `Authorization`."""
    return {"apikey": key, "Authorization": f"Bearer {key}"} if key.startswith("eyJ") else {"apikey": key}


@dataclass(frozen=True, slots=True)
class Caller:
    """A role of the database, and the environment variable with the API key for it."""

    role: str
    variable: str


SERVICE_ROLE = Caller("service_role", "SUPABASE_SERVICE_ROLE_KEY")
ANON = Caller("anon", "SUPABASE_PUBLISHABLE_KEY")


class Rest:
    """A client for the REST API with one API key. The methods raise only `ServiceError`s."""

    def __init__(self, url: str, key: str, *, http: httpx.AsyncClient, caller: Caller = SERVICE_ROLE) -> None:
        self.caller = caller
        self._root = f"{url}/rest/v1"
        self._headers = {"Accept": "application/json", **api_headers(key)}
        self._http = http

    async def call(self, function: Function[T], arguments: Mapping[str, Any]) -> T:
        """Call a function and return its answer, which has the function's type.

        Raises:
            ServiceUnavailableError: a retry may succeed; also if the answer does not have the function's type.
            SchemaMissingError: the function is missing in the database.
            SchemaCacheError: the function exists, but PostgREST has not reloaded its schema yet.
            ServiceRefusedError: status 400 for wrong arguments, 401 for a wrong key, 403 for a missing right.
        """
        status, body = await self._send("POST", f"rpc/{function.name}", json=arguments)
        return await self._read(function, status, body)

    async def try_out(self, function: Function[Any]) -> None:
        """Check that a function can be called, without any effect.

        Raises:
            ServiceError: as `call` does. If the function itself refuses the arguments, that is no error here.
        """
        # PostgREST executes a GET in a read-only transaction. A function that tries to write fails with this code.
        status, body = await self._send("GET", f"rpc/{function.name}", params=function.probe)
        if not _is_success(status) and read_error(status, body).code == _READ_ONLY:
            return
        try:
            await self._read(function, status, body)
        except ServiceRefusedError as error:
            if error.status != HTTPStatus.BAD_REQUEST:
                raise

    async def shows_rows(self, table: str) -> bool:
        """Tell whether any row of a table can be read. False also if the table is missing or may not be read."""
        status, body = await self._send("GET", table, params={"select": "*", "limit": "1"})
        if not _is_success(status):
            return False
        try:
            return bool(_ROWS.validate_json(body))
        except ValidationError:
            raise _no_answer(table) from None

    async def serves_version(self, version: int) -> bool:
        """Tell whether the database has the functions of this version of the schema; it may have later ones, too.

        Raises:
            ServiceError: as `call` does.
        """
        marker = schema_marker(version)
        error = await self._ask_for_column(marker)
        if error is None:
            return True
        if error.code in _NOT_THERE:
            return False
        raise explain(marker, error, self.caller)

    async def _ask_for_column(self, column: str) -> RestError | None:
        """Return the error of a query for this column of `datasets` that selects no row; None if the column exists."""
        status, body = await self._send("GET", f"datasets?select={column}&limit=0")
        return None if _is_success(status) else read_error(status, body)

    async def _send(self, method: str, path: str, **what: Any) -> tuple[int, bytes]:
        body = bytearray()
        try:
            url, names = f"{self._root}/{path}", called("database", _operation(path))
            async with self._http.stream(method, url, headers=self._headers, extensions=names, **what) as response:
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise _no_answer(path)
                return response.status_code, bytes(body)
        except httpx.HTTPError as error:
            raise ServiceUnavailableError(SERVICE, f"{SERVICE} is not reachable: {why_unreachable(error)}") from None

    async def _read(self, function: Function[T], status: int, body: bytes) -> T:
        if not _is_success(status):
            error = read_error(status, body)
            if error.code == "PGRST202":
                raise await self._explain_unknown(function.name)
            raise explain(function.name, error, self.caller)
        try:
            return function.answer.validate_json(body, strict=True)
        except ValidationError:
            raise _no_answer(function.name) from None

    async def _explain_unknown(self, function: str) -> SchemaMissingError:
        """Find out why PostgREST does not know a function: it is missing, or PostgREST's copy of the schema is old."""
        marker = schema_marker(SCHEMA_VERSION)
        error = await self._ask_for_column(marker)
        if error is None or (error.code == _NO_RIGHT and marker in error.text):
            text = f"REST's schema cache does not know {function} yet, though it is in the database: {_RELOAD}, or wait"
            return SchemaCacheError(SERVICE, f"{text} up to ten minutes")
        if error.code in _NOT_THERE:
            return SchemaMissingError(SERVICE, f"the worker's functions are missing in the database: {MEND}")
        # PostgREST does not know the application's own tables either: the project is empty, or its cache is old.
        text = f"REST does not know {function}: {MEND}; where that was done, its schema cache is old: {_RELOAD}"
        return SchemaMissingError(SERVICE, text)


async def closed_functions(rest: Rest, functions: Iterable[Function[Any]]) -> list[str]:
    """Return the reasons why some of the functions can't be called, each once; empty if all can be called.

    Raises:
        ServiceUnavailableError: the database does not answer, or something else answers in its place.
    """

    async def problem_of(function: Function[Any]) -> str | None:
        try:
            await rest.try_out(function)
        except ServiceUnavailableError:
            raise
        except ServiceError as error:
            return str(error)
        return None

    found = await asyncio.gather(*(problem_of(function) for function in functions))
    return list(dict.fromkeys(problem for problem in found if problem))


def explain(function: str, error: RestError, caller: Caller) -> ServiceError:
    """Make the exception for an error answer, with a text that says what the operator can do.

    PostgREST's code for an unknown function (PGRST202) is not handled here: `Rest` finds its cause by another call.
    """
    what = f"{error.code or f'HTTP {error.status}'}"
    if error.code in _MENDED_BY_MIGRATING:
        reason = _MENDED_BY_MIGRATING[error.code]
        return SchemaMissingError(SERVICE, f"{function} can't be called ({error.code}): {reason}")
    if error.code == _NO_RIGHT:
        return ServiceRefusedError(SERVICE, _explain_right(function, error.text, caller), status=HTTPStatus.FORBIDDEN)
    if _is_about_key(error):
        text = f"{SERVICE} refused the key for {function} ({what}): check {caller.variable}"
        return ServiceRefusedError(SERVICE, text, status=HTTPStatus.UNAUTHORIZED)
    if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or (error.code or "").startswith(_VALUE_CODES):
        text = f"{SERVICE} can't hold a value of the call of {function} ({what})"
        return ValueRefusedError(SERVICE, text, status=HTTPStatus.BAD_REQUEST)
    if error.passes or error.code is None or error.code in _KEY_CODES:
        plain = _PLAIN.get(error.code or "") or (error.code is None and _PLAIN_STATUSES.get(error.status))
        return ServiceUnavailableError(SERVICE, f"{SERVICE} is not available ({what}{f': {plain}' if plain else ''})")
    return ServiceRefusedError(
        SERVICE, f"{SERVICE} refused the call of {function} ({what}); its log says more", status=HTTPStatus.BAD_REQUEST
    )


def _is_about_key(error: RestError) -> bool:
    if error.code in _KEY_CODES:
        # For keys of the newer kind the gateway makes a JWT for PostgREST. If the gateway's clock is ahead, PostgREST
        # refuses it for a moment; the key is right.
        return not _TOO_EARLY.search(error.text)
    refused = error.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
    return refused and error.code is None and not error.is_page


def _explain_right(function: str, text: str, caller: Caller) -> str:
    """Say which right is missing. Of the text of Postgres only names of objects are repeated, never values."""
    denied = _DENIED.search(text)
    if denied is None:
        row_denied = _ROW_DENIED.search(text)
        where = f" on {row_denied[1]}" if row_denied else ""
        return (
            f"a policy or trigger{where} refuses what {function} does (42501): see the project's policies and triggers"
        )
    kind, name = denied[1], denied[2]
    if kind == "function" and name == function:
        what, role = f"{caller.role} may not call {function}", caller.role
    else:
        # Our functions are `security definer`: inside them the rights of their owner count.
        what, role = f"{function} needs the {kind} {name}, to which its owner has no right", "its owner"
    right = _RIGHTS.get(kind, "select, insert, update, delete on table")
    target = name if kind == "schema" else f"public.{name}"
    return f"{what} (42501): run `lora-worker migrate`, or `grant {right} {target} to {role}`"


def _operation(path: str) -> str:
    """Return the name under which a call is measured: the function's, or `select` for a table."""
    return path.removeprefix("rpc/") if path.startswith("rpc/") else "select"


def _is_success(status: int) -> bool:
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES


def _no_answer(asked: str) -> ServiceUnavailableError:
    return ServiceUnavailableError(
        SERVICE, f"{SERVICE} is not available: what came back for {asked.removeprefix('rpc/')} is no answer to it"
    )
