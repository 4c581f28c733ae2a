"""Reads error answers of Supabase Storage. Worker and trainer both use it, so it imports no heavy library.

Storage answers nearly every error with HTTP 400 and puts the real status into the body:
`{"statusCode": "413", "code": "EntityTooLarge", "error": "Payload too large", "message": "…"}`. Only its statuses 500
and 544, and the answers of a gateway in front of it, are real HTTP statuses.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import httpx

MAX_ANSWER_BYTES = 65_536
"""How many bytes of an error answer are read. No error answer of Storage is longer."""

_SHOWN_CHARACTERS = 300

_PASSING_STATUSES = frozenset({408, 423, 425, 429})
_MISSING = re.compile(r"NoSuchKey|NoSuchBucket|not.?found", re.IGNORECASE)
_EXPIRED = re.compile(r"expired|\bexp\b", re.IGNORECASE)
_URL_REFUSED = re.compile(r"InvalidJWT|ExpiredToken|InvalidSignature|InvalidUploadSignature")
_KEY_REFUSED = re.compile(r"api ?key|jw[ts]|signature|authori[sz]|access ?denied", re.IGNORECASE)


class Refusal(StrEnum):
    """Why Storage refused a call."""

    PASSING = "passing"
    """A retry may succeed: a lock, too many calls, a read-only database, an error of the server."""
    URL_EXPIRED = "url_expired"
    """The signed URL has expired; a new one works."""
    URL_REFUSED = "url_refused"
    """The signed URL belongs to another project or another object."""
    KEY_REFUSED = "key_refused"
    """The API key is wrong, or may not do this."""
    MISSING = "missing"
    """The object or its bucket does not exist."""
    TOO_LARGE = "too_large"
    """The file has more bytes than the bucket or the project allows."""
    TYPE_REFUSED = "type_refused"
    """The bucket does not allow this MIME type."""
    NAME_REFUSED = "name_refused"
    """Storage allows no object with this name."""
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Answer:
    """An error answer. `status` is the real status, from the body or, where that has none, from HTTP."""

    status: int
    refusal: Refusal


def read_answer(http_status: int, body: bytes) -> Answer:
    """Interpret an error answer of Storage; never raises."""
    document = _document(body)
    status = _inner_status(document, http_status)
    name = _text(document, "code") + " " + _text(document, "error")
    return Answer(status, _refusal(status, name, _text(document, "message")))


async def read_streamed_answer(response: httpx.Response) -> Answer:
    """Interpret an error response whose body has not been read yet; reads at most `MAX_ANSWER_BYTES` of it.

    Raises:
        httpx.HTTPError: the connection broke while the body was read.
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
    # Codes are checked before messages: a message repeats the object's name, which may contain any word.
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
