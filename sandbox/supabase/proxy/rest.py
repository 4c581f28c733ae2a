"""Rewrites answers of REST as PostgREST would give them: codes, statuses and the format of timestamps."""

from __future__ import annotations

import json
import re
from typing import Any

from sandbox.supabase.proxy.answer import Answer

ROOT = "/rest/v1/"

_TIMESTAMP = re.compile(rb'"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d{1,6})?)([+-]\d\d)(?::?(\d\d))?"')
_SQLSTATE = re.compile(r"[0-9A-Z]{5}")

# The upstream server uses this code for errors that it does not know; `sandbox/supabase/hosted.mjs` puts the database's
# error into the message.
_UNMAPPED, _PREFIX = "SUP", "PostgresError: "

# PostgREST's table of statuses by SQLSTATE; the first match counts, and all other codes give 400. The status of 42501
# depends on the caller's role, and the upstream server sets it correctly.
_STATUSES = (
    *(("57P01", 503), ("53400", 500), ("21000", 500), ("25006", 405), ("23503", 409), ("23505", 409)),
    *(("42883", 404), ("42P01", 404), ("42P17", 500), ("P0001", 400)),
    *(("08", 503), ("53", 503), ("0L", 403), ("0P", 403), ("28", 403)),
    *((code, 500) for code in ("09", "25", "2D", "38", "39", "3B", "40", "54", "55", "57", "58", "F0", "HV")),
    *(("P0", 500), ("XX", 500)),
)
_OF_CALLER = frozenset({"42501"})

EXPIRED = Answer(401, b'{"code":"PGRST303","details":null,"hint":null,"message":"JWT expired"}')
"""The answer to an expired key."""


def rewrite_answer(path: str, answer: Answer) -> Answer:
    """Rewrite the JSON answer to any request as a hosted project gives it."""
    if path.startswith(ROOT) and answer.status >= 400:
        answer = rewrite_error(answer)
    return answer._replace(body=iso_timestamps(answer.body))


def iso_timestamps(body: bytes) -> bytes:
    """Rewrite the timestamps of Postgres (`2026-01-02 03:04:05+00`) in a JSON text as ISO 8601."""
    return _TIMESTAMP.sub(lambda m: b'"%bT%b%b:%b"' % (m[1], m[2], m[3], m[4] or b"00"), body)


def rewrite_error(answer: Answer) -> Answer:
    """Rewrite an error: with the code of the database, and the status that PostgREST gives to that code."""
    error = json.loads(answer.body)
    if not isinstance(error, dict):
        return answer
    error = _mapped(error)
    code = str(error.get("code"))
    if not _SQLSTATE.fullmatch(code) or code.startswith("PT") or code in _OF_CALLER:
        return answer._replace(body=json.dumps(error).encode())
    return Answer(status_of(code), json.dumps(error).encode())


def status_of(sqlstate: str) -> int:
    """Return the HTTP status that PostgREST gives to an error of the database."""
    return next((status for start, status in _STATUSES if sqlstate.startswith(start)), 400)


def _mapped(error: dict[str, Any]) -> dict[str, Any]:
    message = str(error.get("message"))
    if error.get("code") == _UNMAPPED and message.startswith(f"{_PREFIX}{{"):
        return dict(json.loads(message.removeprefix(_PREFIX)))
    if error.get("code") == "PGRST205" and message == "Could not find the relation in the schema cache":
        # A function uses a table that does not exist. (If the request itself names such a table, the message differs.)
        return {"code": "42P01", "message": error.get("details"), "details": None, "hint": None}
    return error
