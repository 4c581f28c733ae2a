"""Who may ask: the token, the session that its URL opens, and the headers of every answer.

The dashboard shows every user's jobs and can cancel them, so each request needs a session, also those for style and
script. A session is made only by the URL with the token. Its cookie is signed with the token: it survives a restart if
the token is set by hand, and a new token ends all sessions.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Iterable
from hashlib import sha256

from itsdangerous import BadSignature, Signer, TimestampSigner
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SESSION_SECONDS = 7 * 86_400
"""How long a session lasts; after that the URL with the token has to be opened again."""

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]{1,5})?")
_READING = frozenset({"GET", "HEAD"})

HEADERS = {
    # No inline script or style, nothing from elsewhere, and no page may show this one in a frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: with that, browsers send `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
"""Headers of every answer, refusals included."""

_SIGNED_IN = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Signed in</title>
<meta name="color-scheme" content="light dark"><meta http-equiv="refresh" content="0; url=/"></head>
<body><p>Signed in. <a href="/">Open the dashboard</a></p></body></html>
"""
"""A page that leads on, and no redirect: after a click on the URL in a mail or chat, the browser would send the Strict
cookie only with navigations that begin on a page of ours."""


def make_token() -> str:
    """Return a new token of 256 bits."""
    return secrets.token_urlsafe(32)


class Access:
    """The token, and the sessions and form tokens that are signed with it. All comparisons take constant time."""

    def __init__(self, token: str, port: int) -> None:
        # Cookies do not know ports: with one name for all, two dashboards of a machine would sign each other out.
        self.cookie = f"lora_worker_dashboard_{port}"
        self._token = token.encode()
        self._sessions = TimestampSigner(token, salt="session", digest_method=sha256)
        self._forms = Signer(token, salt="form", digest_method=sha256)

    def opens(self, given: str) -> bool:
        """Tell whether this is the token."""
        return secrets.compare_digest(given.encode(errors="replace"), self._token)

    def new_session(self) -> str:
        """Return the cookie's value for a new session."""
        return self._sessions.sign(secrets.token_urlsafe(16)).decode()

    def holds(self, session: str) -> bool:
        """Tell whether this is a session of ours that has not expired."""
        try:
            self._sessions.unsign(session, max_age=SESSION_SECONDS)
        except BadSignature:  # an expired one is a kind of it
            return False
        return True

    def form_token(self, session: str) -> str:
        """Return the token that every form of this session carries."""
        return self._forms.get_signature(session).decode()

    def form_fits(self, session: str, given: str) -> bool:
        """Tell whether a form was made by a page of this session."""
        return self._forms.verify_signature(session, given)


class Guard:
    """Passes on only requests of a session, from a page of ours, to a name that is ours; adds `HEADERS` to all answers.

    `names` are host names that may stand in the Host header, beside localhost and addresses. A page of a stranger can
    point a name of its own at this machine (DNS rebinding), and its requests carry that name.
    """

    def __init__(self, app: ASGIApp, access: Access, names: Iterable[str] = ()) -> None:
        self._app = app
        self._access = access
        self._names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # A web socket, which we have none of: closed unanswered.
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._answer(Request(scope)) or self._app
        await answer(scope, receive, send_guarded)

    def _answer(self, request: Request) -> Response | None:
        """Return the answer to a request that is not passed on."""
        if not self._is_ours(request.headers):
            return _refusal("this name is not the dashboard's; start it with --allow-name NAME to use one", 400)
        given = request.query_params.get("token")
        if given is not None and request.method == "GET" and request.url.path == "/":
            return self._sign_in(request, given)
        session = request.cookies.get(self._access.cookie, "")
        if not self._access.holds(session):
            return _refusal("open the URL that `lora-worker dashboard` has printed: it holds the token", 401)
        if request.method not in _READING and _is_foreign(request.headers):
            return _refusal("this form was sent by another site's page", 403)
        request.state.session = session
        return None

    def _is_ours(self, headers: Headers) -> bool:
        host = _HOST.fullmatch(headers.get("host", "").lower())
        name = (host[1] or host[2]) if host else ""
        return name in self._names or _is_address(name)

    def _sign_in(self, request: Request, given: str) -> Response:
        if not self._access.opens(given):
            return _refusal("this token is not (or no longer) the dashboard's", 401)
        answer = HTMLResponse(_SIGNED_IN)
        answer.set_cookie(
            self._access.cookie,
            self._access.new_session(),
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer


def _is_address(name: str) -> bool:
    """Tell whether this is an IP address, which no DNS entry can point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_foreign(headers: Headers) -> bool:
    """Tell whether the browser says that another site's page sent this. Old browsers send neither header."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site not in {None, "same-origin", "none"}:
        return True
    return origin is not None and origin.partition("://")[2] != headers.get("host", "")


def _refusal(text: str, status: int) -> Response:
    return PlainTextResponse(f"{text[0].upper()}{text[1:]}.\n", status)
