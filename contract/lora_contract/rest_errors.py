"""What an error of Supabase's REST API says: whether it passes. Trainer and worker call the same functions through it.

PostgREST names the database's own code (a SQLSTATE), or one of its own (`PGRST…`). The gateway before it gives a
status and a text, or a page.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from http import HTTPStatus

_SQLSTATE = re.compile(r"[0-9A-Z]{5}")
_RAISED = re.compile(r"PT(\d{3})")

# Of the classes of SQLSTATE those that speak of the database's state, and not of what it was asked: connections,
# transactions (also one that is read-only), rollbacks, resources, limits, locks, operators, files, other servers.
_PASSING_CLASSES = ("08", "25", "40", "53", "54", "55", "57", "58", "F0", "HV", "XX")

# A pooler handed PostgREST a connection that does not know its prepared statements, or knows them already.
_PASSING_SQLSTATES = frozenset({"26000", "42P05"})

_PASSING_STATUSES = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


@dataclass(frozen=True, slots=True)
class RestError:
    """An answer that is an error. `text` is the server's and may hold values of rows: it goes into no log."""

    status: int
    code: str | None
    """A SQLSTATE or a code of PostgREST; None from the gateway."""
    text: str
    is_page: bool
    """It is no JSON object, so neither PostgREST nor the gateway's check of keys said it."""

    @property
    def passes(self) -> bool:
        """Whether the same call may succeed later, with nothing changed in it."""
        if self.code is None:
            return self.status in _PASSING_STATUSES or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        raised = _RAISED.fullmatch(self.code)
        if raised:
            return int(raised[1]) in _PASSING_STATUSES or int(raised[1]) >= HTTPStatus.INTERNAL_SERVER_ERROR
        if _SQLSTATE.fullmatch(self.code):
            return self.code.startswith(_PASSING_CLASSES) or self.code in _PASSING_SQLSTATES
        return self.status >= HTTPStatus.INTERNAL_SERVER_ERROR


def read_error(status: int, body: bytes) -> RestError:
    """The error in an answer whose status is no success."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return RestError(status, None, "", is_page=True)
    code, text = found.get("code"), found.get("message")
    # The gateway may repeat the status there.
    is_code = isinstance(code, str) and re.fullmatch(r"[0-9A-Z]{5}|PGRST\w{3}", code)
    return RestError(status, code if is_code else None, text if isinstance(text, str) else "", is_page=False)
