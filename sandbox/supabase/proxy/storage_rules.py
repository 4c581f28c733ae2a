"""Refuses what the real Storage refuses and the upstream server does not, with the answers of the real one.

Nearly every refusal has HTTP status 400 and the real status in its body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

import jwt

from sandbox.supabase.proxy.answer import Answer
from sandbox.supabase.proxy.settings import ProxySettings

_OBJECT = "/storage/v1/object/"
_NAME = re.compile(r"[A-Za-z0-9_/!.*'() &$=@;:+,?-]+")
_ROUTES = frozenset({"list", "sign", "copy", "move", "info", "public", "authenticated", "upload"})
"""Parts of a path after `object/` that are no names of buckets."""

_CODES = {
    "not_found": "NoSuchKey",
    "Bucket not found": "NoSuchBucket",
    "Payload too large": "EntityTooLarge",
    "invalid_mime_type": "InvalidMimeType",
    "Duplicate": "KeyAlreadyExists",
    "Invalid key": "InvalidKey",
}
"""The `code` that belongs to each `error`; the upstream server leaves it out."""


class Call(NamedTuple):
    """What is known of a request to Storage before its body is read."""

    method: str
    path: str
    """The path as it was sent, percent-encoded."""
    query: Mapping[str, str]
    content_length: int | None


def refuse(status: int, code: str, message: str, *, error: str | None = None, http_status: int = 400) -> Answer:
    """Make a refusal as Storage writes it."""
    body = {"statusCode": str(status), "code": code, "error": error or code, "message": message}
    return Answer(http_status, json.dumps(body).encode())


def spell_refusal(answer: Answer) -> Answer:
    """Add to a refusal of the upstream server the code that the real Storage gives."""
    try:
        body: Any = json.loads(answer.body)
    except ValueError:
        return answer
    if not isinstance(body, dict) or body.get("error") not in _CODES or "code" in body:
        return answer
    return answer._replace(body=json.dumps({**body, "code": _CODES[body["error"]]}).encode())


def refusal(call: Call, settings: ProxySettings) -> Answer | None:
    """Return the refusal of a call that can be refused by its URL and headers alone; None for all others."""
    target = _signed_target(call)
    if target is not None:
        intent, bucket, name = target
        refused = _refuse_token(call.query.get("token"), settings.jwt_secret, intent, bucket, name)
        if refused is not None:
            return refused
    uploaded = _uploaded_name(call, target)
    if uploaded is None:
        return None
    if not _NAME.fullmatch(uploaded):
        return refuse(400, "InvalidKey", f"Invalid key: {uploaded}")
    if call.content_length is not None and call.content_length > settings.file_size_limit:
        return too_large()
    return None


def too_large() -> Answer:
    """Make the refusal of a file that is larger than the bucket or the project allows."""
    return refuse(413, "EntityTooLarge", "The object exceeded the maximum allowed size", error="Payload too large")


def refuse_names(body: bytes) -> Answer | None:
    """Return the refusal of a copy or a move whose target has a name that is not allowed; None if it is allowed."""
    target = json.loads(body).get("destinationKey")
    return None if isinstance(target, str) and _NAME.fullmatch(target) else refuse(400, "InvalidKey", "Invalid key")


def _signed_target(call: Call) -> tuple[str, str, str] | None:
    for method, route, intent in (("GET", "sign/", "download"), ("PUT", "upload/sign/", "upload")):
        if call.method == method and call.path.startswith(_OBJECT + route):
            bucket, _, name = call.path.removeprefix(_OBJECT + route).partition("/")
            return intent, unquote(bucket), unquote(name)
    return None


def _uploaded_name(call: Call, target: tuple[str, str, str] | None) -> str | None:
    if target is not None:
        return target[2] if target[0] == "upload" else None
    bucket, _, name = call.path.removeprefix(_OBJECT).partition("/")
    is_upload = call.method in {"POST", "PUT"} and call.path.startswith(_OBJECT) and bucket not in _ROUTES
    return unquote(name) if is_upload else None


def _refuse_token(token: str | None, secret: str, intent: str, bucket: str, name: str) -> Answer | None:
    if token is None:
        return refuse(400, "InvalidRequest", "querystring must have required property 'token'", error="Error")
    try:
        claims = jwt.decode(token, secret, algorithms=["HS256"])
    except jwt.ExpiredSignatureError:
        return refuse(400, "InvalidJWT", '"exp" claim timestamp check failed')
    except jwt.InvalidSignatureError:
        return refuse(400, "InvalidJWT", "signature verification failed")
    except jwt.InvalidTokenError:
        return refuse(400, "InvalidJWT", "Invalid Compact JWS")
    signed = claims.get("intent"), claims.get("bucket"), unquote(str(claims.get("sub")))
    # The real Storage signs a `?` encoded as it was in the request, but compares it with the decoded name.
    if signed != (intent, bucket, name) or (intent == "download" and "?" in name):
        return refuse(400, "InvalidSignature", "Invalid signature")
    return None
