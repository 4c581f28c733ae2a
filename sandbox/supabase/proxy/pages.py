"""Answers a number of requests with the HTML page of a gateway, as if something in between had failed."""

from __future__ import annotations

import json

from starlette.responses import HTMLResponse, Response

PATH = "/sandbox/pages"
"""The path at which the sandbox, with the secret key, sets which answers become pages: `{prefix, status, times}`."""

TITLE = "Just a moment..."
_PAGE = f"<!DOCTYPE html><html><head><title>{TITLE}</title></head><body>Checking your browser</body></html>"


class Pages:
    """Decides which requests are answered with a page instead of being passed on."""

    def __init__(self) -> None:
        self._prefix, self._status, self._times = "", 502, 0

    def order(self, body: bytes) -> Response:
        """Set which of the next requests are answered with a page; this replaces the setting before."""
        order = json.loads(body)
        self._prefix, self._status, self._times = str(order["prefix"]), int(order["status"]), int(order["times"])
        return Response(status_code=204)

    def take(self, path: str) -> Response | None:
        """Return the page for a request of this path; None if the request shall be passed on."""
        if self._times <= 0 or not path.startswith(self._prefix):
            return None
        self._times -= 1
        return HTMLResponse(_PAGE, self._status)
