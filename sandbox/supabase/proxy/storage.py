"""Rewrites Storage requests for the upstream server, and its answers as the hosted Storage writes them."""

from __future__ import annotations

import json
from typing import Any

import jwt

from sandbox.supabase.proxy.answer import Answer
from sandbox.supabase.proxy.settings import ProxySettings
from sandbox.supabase.proxy.storage_rules import spell_refusal

ROOT = "/storage/v1/"

_SIGN = f"{ROOT}object/sign/"
_SIGN_UPLOAD = f"{ROOT}object/upload/sign/"


def carries_object(method: str, path: str) -> bool:
    """Tell whether the answer is the content of an object, which must not be changed."""
    inside = path.startswith(f"{ROOT}object/") and not path.startswith(f"{ROOT}object/info/")
    return inside and method in {"GET", "HEAD"}


def asks_for_signing(method: str, path: str) -> bool:
    """Tell whether the request asks for a signed URL, so that its body must go through `sign_request`."""
    return method == "POST" and path.startswith(_SIGN)


def names_a_target(method: str, path: str) -> bool:
    """Tell whether the request copies or moves an object, so that its body names a target."""
    return method == "POST" and path in {f"{ROOT}object/copy", f"{ROOT}object/move"}


def rewrite_answer(method: str, path: str, answer: Answer, settings: ProxySettings) -> Answer:
    """Rewrite the JSON answer to a Storage request as the hosted Storage gives it."""
    if answer.status >= 400 and path.startswith(ROOT):
        return spell_refusal(answer)
    if asks_for_signing(method, path):
        return answer._replace(body=sign_answer(answer.body))
    if method == "POST" and path.startswith(_SIGN_UPLOAD):
        return answer._replace(body=sign_upload_answer(answer.body, settings))
    return answer


def sign_request(body: bytes) -> bytes:
    """Rewrite a request for a signed URL: the upstream server accepts its seconds only as a number."""
    request = json.loads(body)
    request["expiresIn"] = int(request["expiresIn"])
    return json.dumps(request).encode()


def sign_answer(body: bytes) -> bytes:
    """Rewrite the answer: `signedURL` is relative to the Storage's root, or null if there is no URL."""

    def spell(item: dict[str, Any]) -> dict[str, Any]:
        if "signedUrl" in item:
            url = item.pop("signedUrl") or ""
            item["signedURL"] = url.removeprefix("/storage/v1") or None
        return item

    answer = json.loads(body)
    return json.dumps([spell(item) for item in answer] if isinstance(answer, list) else spell(answer)).encode()


def sign_upload_answer(body: bytes, settings: ProxySettings) -> bytes:
    """Rewrite the answer: `url` is relative to the Storage's root, and its token has the lifetime of the settings."""
    answer = json.loads(body)
    if "signedUrl" not in answer:
        return body
    url, _, token = answer.pop("signedUrl").removeprefix("/storage/v1").partition("?token=")
    claims = jwt.decode(token, settings.jwt_secret, algorithms=["HS256"])
    claims["exp"] = claims["iat"] + settings.upload_url_seconds
    token = jwt.encode(claims, settings.jwt_secret, algorithm="HS256")
    return json.dumps({**answer, "url": f"{url}?token={token}", "token": token}).encode()
