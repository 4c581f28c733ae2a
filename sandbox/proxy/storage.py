"""Storage requests as the server behind reads them, and its answers as the hosted Storage spells them."""

from __future__ import annotations

import json
from typing import Any

from sandbox.proxy.answer import Answer

ROOT = "/storage/v1/"

_SIGN = f"{ROOT}object/sign/"
_SIGN_UPLOAD = f"{ROOT}object/upload/sign/"


def carries_object(method: str, path: str) -> bool:
    """Whether the answer is the content of an object, which nobody may touch."""
    inside = path.startswith(f"{ROOT}object/") and not path.startswith(f"{ROOT}object/info/")
    return inside and method in {"GET", "HEAD"}


def asks_for_signing(method: str, path: str) -> bool:
    """Whether the request's body has to go through `sign_request`."""
    return method == "POST" and path.startswith(_SIGN)


def rewrite_answer(method: str, path: str, answer: Answer) -> Answer:
    """The JSON answer to a request of Storage as the hosted one gives it."""
    if asks_for_signing(method, path):
        return answer._replace(body=sign_answer(answer.body))
    if method == "POST" and path.startswith(_SIGN_UPLOAD):
        return answer._replace(body=sign_upload_answer(answer.body))
    return answer


def sign_request(body: bytes) -> bytes:
    """The request for a signed URL with its seconds as a number."""
    asked = json.loads(body)
    asked["expiresIn"] = int(asked["expiresIn"])
    return json.dumps(asked).encode()


def sign_answer(body: bytes) -> bytes:
    """The answer with `signedURL` relative to the Storage's root, null where there is none."""

    def spell(item: dict[str, Any]) -> dict[str, Any]:
        if "signedUrl" in item:
            url = item.pop("signedUrl") or ""
            item["signedURL"] = url.removeprefix("/storage/v1") or None
        return item

    answer = json.loads(body)
    return json.dumps([spell(item) for item in answer] if isinstance(answer, list) else spell(answer)).encode()


def sign_upload_answer(body: bytes) -> bytes:
    """The answer with `url` relative to the Storage's root."""
    answer = json.loads(body)
    if "signedUrl" in answer:
        answer["url"] = answer.pop("signedUrl").removeprefix("/storage/v1")
    return json.dumps(answer).encode()
