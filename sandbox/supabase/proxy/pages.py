"""Pages of a gateway in place of answers, for a number of requests."""

from __future__ import annotations

import json

from starlette.responses import HTMLResponse, Response

PATH = "/sandbox/pages"
"""Where the sandbox says, with the secret key, which answers are to be pages: `{prefix, status, times}`."""

TITLE = "Just a moment..."
_PAGE = f"<!DOCTYPE html><html><head><title>{TITLE}</title></head><body>Checking your browser</body></html>"


class Pages:
    """What is answered with a page instead of being passed on."""

    def __init__(self) -> None:
        self._prefix, self._status, self._times = "", 502, 0

    def order(self, body: bytes) -> Response:
        """Take an order; it replaces the one before."""
        asked = json.loads(body)
        self._prefix, self._status, self._times = str(asked["prefix"]), int(asked["status"]), int(asked["times"])
        return Response(status_code=204)

    def take(self, path: str) -> Response | None:
        """The page for this path; None where the request is to be passed on."""
        if self._times <= 0 or not path.startswith(self._prefix):
            return None
        self._times -= 1
        return HTMLResponse(_PAGE, self._status)
