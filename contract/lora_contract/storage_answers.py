"""What an answer of Supabase Storage means. Worker and trainer both ask here, so it imports nothing heavy.

Storage refuses nearly everything with HTTP 400 and puts the real status into the body:
`{"statusCode": "413", "code": "EntityTooLarge", "error": "Payload too large", "message": "…"}`. Only 500 and 544
stay outside, and whatever a gateway in front of it answers.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import httpx

MAX_ANSWER_BYTES = 65_536
"""More than any refusal has; what comes after it is not read."""

_SHOWN_CHARACTERS = 300

_PASSING_STATUSES = frozenset({408, 423, 425, 429})
_MISSING = re.compile(r"NoSuchKey|NoSuchBucket|not.?found", re.IGNORECASE)
_EXPIRED = re.compile(r"expired|\bexp\b", re.IGNORECASE)
_URL_REFUSED = re.compile(r"InvalidJWT|ExpiredToken|InvalidSignature|InvalidUploadSignature")
_KEY_REFUSED = re.compile(r"api ?key|jw[ts]|signature|authori[sz]|access ?denied", re.IGNORECASE)


class Refusal(StrEnum):
    """Why Storage did not do what was asked."""

    PASSING = "passing"
    """It may work later: a lock, too many calls, a database that only reads, a fault of the server."""
    URL_EXPIRED = "url_expired"
    """The signed URL has run out; a new one works."""
    URL_REFUSED = "url_refused"
    """The signed URL is not one of this project's, or is for another object."""
    KEY_REFUSED = "key_refused"
    MISSING = "missing"
    """The object or its bucket is not there."""
    TOO_LARGE = "too_large"
    """More bytes than the bucket, or the project, takes."""
    TYPE_REFUSED = "type_refused"
    """The bucket does not take this MIME type."""
    NAME_REFUSED = "name_refused"
    """No object can have this name."""
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is no success. `status` is the real one, wherever it stood."""

    status: int
    refusal: Refusal


def read_answer(http_status: int, body: bytes) -> Answer:
    """What Storage means by an answer that is no success."""
    document = _document(body)
    status = _inner_status(document, http_status)
    name = _text(document, "code") + " " + _text(document, "error")
    return Answer(status, _refusal(status, name, _text(document, "message")))


async def read_streamed_answer(response: httpx.Response) -> Answer:
    """`read_answer` for a response whose body has not been read; takes `MAX_ANSWER_BYTES` of it at most.

    Raises:
        httpx.HTTPError: it broke off.
    """
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) >= MAX_ANSWER_BYTES:
            break
    return read_answer(response.status_code, bytes(body[:MAX_ANSWER_BYTES]))


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body[:MAX_ANSWER_BYTES])
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    return value[:_SHOWN_CHARACTERS] if isinstance(value, str) else ""


def _inner_status(document: dict[str, Any], http_status: int) -> int:
    text = str(document.get("statusCode"))[:_SHOWN_CHARACTERS]
    if text.isascii() and text.isdecimal() and 400 <= int(text) <= 599:
        return int(text)
    return http_status


def _refusal(status: int, name: str, message: str) -> Refusal:
    # A message repeats the name that was refused, and a name may hold any word: the codes come first.
    if "InvalidKey" in name:
        return Refusal.NAME_REFUSED
    if status in _PASSING_STATUSES or status >= 500:
        return Refusal.PASSING
    if status == 413:
        return Refusal.TOO_LARGE
    if status == 415:
        return Refusal.TYPE_REFUSED
    if _URL_REFUSED.search(name):
        return Refusal.URL_EXPIRED if "ExpiredToken" in name or _EXPIRED.search(message) else Refusal.URL_REFUSED
    if status in {401, 403} or (status == 400 and _KEY_REFUSED.search(f"{name} {message}")):
        return Refusal.KEY_REFUSED
    if status == 404 or _MISSING.search(f"{name} {message}"):
        return Refusal.MISSING
    return Refusal.OTHER
