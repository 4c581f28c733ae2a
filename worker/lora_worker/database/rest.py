"""Calls of the database's functions over Supabase's REST API, and what each answer means.

PostgREST's own client hides the status of an error and gives a gateway's page back as if it were the answer, so the
calls are made with httpx. No text of a server goes into an exception: it may hold values of rows.
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
from lora_worker.database.functions import Function, T
from lora_worker.errors import (
    SchemaCacheError,
    SchemaMissingError,
    ServiceError,
    ServiceRefusedError,
    ServiceUnavailableError,
    ValueRefusedError,
)

SERVICE = "Supabase's database"
MEND = "run `lora-worker migrate` with this worker's release, or update the worker"

MAX_ANSWER_BYTES = 32 * 1024**2
"""More than 500 adopted runs with rows as large as the database lets them be; the smallest machine can hold it."""

_RELOAD = "run `notify pgrst, 'reload schema'` in the project's SQL editor"

# Asks, past PostgREST's copy of the schema, whether this release's functions are in the database: PostgREST passes
# names of columns on unseen, and Postgres reads this one as a call of the function on each row; of no row, here.
_MARKER = "worker_schema_1"

_MENDED_BY_MIGRATING = {
    "42883": f"a function that it calls is missing; {MEND}",
    "42P01": f"a table that it needs is missing; {MEND}",
    "42703": f"a column that it needs is missing; {MEND}",
    "PGRST203": f"there are two of it, with different arguments; {MEND}",
    "PGRST106": "the project's Data API does not expose the schema public; switch that on in its API settings",
}
# Data exceptions and constraints of Postgres, and what this schema's functions say of an argument.
_VALUE_CODES = ("22", "23", "PT400")
_NO_RIGHT = "42501"
_READ_ONLY = "25006"
_KEY_CODES = frozenset({"PGRST301", "PGRST302", "PGRST303"})
_TOO_EARLY = re.compile(r"issued at future|not yet valid", re.IGNORECASE)

# Words for what an operator can do something about.
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
    """Headers for a Supabase key: only a legacy JWT may also stand in `Authorization`."""
    return {"apikey": key, "Authorization": f"Bearer {key}"} if key.startswith("eyJ") else {"apikey": key}


@dataclass(frozen=True, slots=True)
class Caller:
    """A role of the database, and the variable with the key that lets one act as it."""

    role: str
    variable: str


SERVICE_ROLE = Caller("service_role", "SUPABASE_SERVICE_ROLE_KEY")
ANON = Caller("anon", "SUPABASE_PUBLISHABLE_KEY")


class Rest:
    """The REST API, as one key opens it. Every method raises `ServiceError`s and nothing else."""

    def __init__(self, url: str, key: str, *, http: httpx.AsyncClient, caller: Caller = SERVICE_ROLE) -> None:
        self.caller = caller
        self._root = f"{url}/rest/v1"
        self._headers = {"Accept": "application/json", **api_headers(key)}
        self._http = http

    async def call(self, function: Function[T], arguments: Mapping[str, Any]) -> T:
        """Call a function; its answer, of the function's type.

        Raises:
            ServiceUnavailableError: it may answer later; also for whatever is not an answer of this type.
            SchemaMissingError: the function is not in the database, or `SchemaCacheError`: REST does not know it yet.
            ServiceRefusedError: 400 for what was asked, 401 for the key, 403 for a missing right.
        """
        status, body = await self._send("POST", f"rpc/{function.name}", json=arguments)
        return await self._read(function, status, body)

    async def try_out(self, function: Function[Any]) -> None:
        """See that the function can be called, without an effect.

        Raises:
            ServiceError: as `call` does. What the function itself refuses is none: it was reached.
        """
        # PostgREST carries out a GET in a read-only transaction, where what would write ends with this code.
        status, body = await self._send("GET", f"rpc/{function.name}", params=function.probe)
        if not _is_success(status) and read_error(status, body).code == _READ_ONLY:
            return
        try:
            await self._read(function, status, body)
        except ServiceRefusedError as error:
            if error.status != HTTPStatus.BAD_REQUEST:
                raise

    async def shows_rows(self, table: str) -> bool:
        """Whether any row of the table can be read; a table that is closed or not there has none."""
        status, body = await self._send("GET", table, params={"select": "*", "limit": "1"})
        if not _is_success(status):
            return False
        try:
            return bool(_ROWS.validate_json(body))
        except ValidationError:
            raise _no_answer(table) from None

    async def _send(self, method: str, path: str, **what: Any) -> tuple[int, bytes]:
        body = bytearray()
        try:
            async with self._http.stream(method, f"{self._root}/{path}", headers=self._headers, **what) as response:
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
        """Why REST does not know a function: it is not in the database, or REST has not read the schema since."""
        status, body = await self._send("GET", f"datasets?select={_MARKER}&limit=0")
        error = None if _is_success(status) else read_error(status, body)
        if error is None or (error.code == _NO_RIGHT and _MARKER in error.text):
            text = f"REST's schema cache does not know {function} yet, though it is in the database: {_RELOAD}, or wait"
            return SchemaCacheError(SERVICE, f"{text} up to ten minutes")
        if error.code == "42703":
            return SchemaMissingError(SERVICE, f"the worker's functions are missing in the database: {MEND}")
        # The application's own tables are not known either: an empty project, or a schema that was never read.
        text = f"REST does not know {function}: {MEND}; where that was done, its schema cache is old: {_RELOAD}"
        return SchemaMissingError(SERVICE, text)


async def closed_functions(rest: Rest, functions: Iterable[Function[Any]]) -> list[str]:
    """Why functions can't be called, each reason once; empty when all can be.

    Raises:
        ServiceUnavailableError: the database does not answer, or not as a database.
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
    """What an error means for the caller of a function: wait; mend the database, the key or a right; or ask otherwise.

    Whether an unknown function (PGRST202) is missing can't be seen from the error alone; `Rest` looks.
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
        # The gateway makes a token of its own for the newer keys, and its clock may be ahead of PostgREST's.
        return not _TOO_EARLY.search(error.text)
    refused = error.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
    return refused and error.code is None and not error.is_page


def _explain_right(function: str, text: str, caller: Caller) -> str:
    """Which right is missing, from what Postgres says; of its text only names of objects are repeated."""
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
        # Inside a function the rights of its owner count.
        what, role = f"{function} needs the {kind} {name}, to which its owner has no right", "its owner"
    right = _RIGHTS.get(kind, "select, insert, update, delete on table")
    target = name if kind == "schema" else f"public.{name}"
    return f"{what} (42501): run `lora-worker migrate`, or `grant {right} {target} to {role}`"


def _is_success(status: int) -> bool:
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES


def _no_answer(asked: str) -> ServiceUnavailableError:
    return ServiceUnavailableError(
        SERVICE, f"{SERVICE} is not available: what came back for {asked.removeprefix('rpc/')} is no answer to it"
    )
