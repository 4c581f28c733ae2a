"""Reads error answers of Supabase's REST API, and decides whether a retry may succeed.

Worker and trainer both call SQL functions through this API. Errors come from two places. PostgREST gives a code: a
SQLSTATE of the database, or one of its own (`PGRST…`). The gateway in front of it gives only a status and a text, or
an HTML page.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from http import HTTPStatus

_SQLSTATE = re.compile(r"[0-9A-Z]{5}")
_RAISED = re.compile(r"PT(\d{3})")

# Classes of SQLSTATE whose errors come from the state of the database and not from the statement: connections,
# transactions (such as a read-only one), rollbacks, resources, limits, locks, operator intervention, files, foreign
# servers, internal errors. See appendix A, “PostgreSQL Error Codes”, of PostgreSQL's manual.
_PASSING_CLASSES = ("08", "25", "40", "53", "54", "55", "57", "58", "F0", "HV", "XX")

# A connection pooler gave PostgREST another connection, on which its prepared statement is missing or exists already.
_PASSING_SQLSTATES = frozenset({"26000", "42P05"})

_PASSING_STATUSES = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


@dataclass(frozen=True, slots=True)
class RestError:
    """An error answer. `text` comes from the server and may contain values of rows: never log it."""

    status: int
    code: str | None
    """A SQLSTATE or a code of PostgREST; None if the gateway answered."""
    text: str
    is_page: bool
    """Whether the answer is no JSON object. Then neither PostgREST nor the gateway's check of API keys sent it."""

    @property
    def passes(self) -> bool:
        """Tell whether a retry of the same call may succeed."""
        if self.code is None:
            return self.status in _PASSING_STATUSES or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        raised = _RAISED.fullmatch(self.code)
        if raised:
            return int(raised[1]) in _PASSING_STATUSES or int(raised[1]) >= HTTPStatus.INTERNAL_SERVER_ERROR
        if _SQLSTATE.fullmatch(self.code):
            return self.code.startswith(_PASSING_CLASSES) or self.code in _PASSING_SQLSTATES
        return self.status >= HTTPStatus.INTERNAL_SERVER_ERROR


def read_error(status: int, body: bytes) -> RestError:
    """Parse the body of an answer whose status is not a success; never raises."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return RestError(status, None, "", is_page=True)
    code, text = found.get("code"), found.get("message")
    # The gateway may repeat the HTTP status under `code`; that is no code of PostgREST.
    is_code = isinstance(code, str) and re.fullmatch(r"[0-9A-Z]{5}|PGRST\w{3}", code)
    return RestError(status, code if is_code else None, text if isinstance(text, str) else "", is_page=False)
