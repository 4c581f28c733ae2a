"""Answers of the other side as values: bounded in size, depth and number, whatever a container put into its output."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

MAX_PARSED_BYTES = 10_000_000
"""RunPod takes no larger result from a worker, and our GPU server none from a trainer."""
_MAX_READ_BYTES = 64_000_000
_PARSED_ASIDE_BYTES = 500_000
"""What takes longer to parse than other runs should wait is parsed in a thread."""
_TAIL_BYTES = 4096
_MAX_DEPTH = 64
_MAX_RETRY_AFTER_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as far as it was read. `content` is None where it is larger than may be parsed."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes | None
    tail: bytes = b""

    @property
    def is_success(self) -> bool:
        """Whether it is a 2xx."""
        return 200 <= self.status_code < 300

    async def json(self) -> Any:
        """The parsed content.

        Raises:
            ValueError: it is no JSON, or larger, deeper or longer in its digits than an answer may be.
        """
        if self.content is None:
            raise ValueError("the answer is larger than an answer may be")
        if len(self.content) > _PARSED_ASIDE_BYTES:
            return await asyncio.to_thread(_parse, self.content)
        return _parse(self.content)


def _parse(content: bytes) -> Any:
    if content.count(b"[") + content.count(b"{") > _MAX_DEPTH and _depth(content) > _MAX_DEPTH:
        raise ValueError("the answer is nested too deep")
    return json.loads(content)


_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)


def _depth(content: bytes) -> int:
    deepest = depth = 0
    for found in _STRUCTURE.finditer(content):
        token = found.group()
        if token in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token in b"]}":
            depth -= 1
    return deepest


async def read_answer(response: httpx.Response) -> Answer:
    """Read a streamed response to its end, or as far as an answer may go; beyond what is parsed only its end is kept.

    Raises:
        httpx.HTTPError: the connection broke, or the answer has no end.
    """
    kept, tail, size = bytearray(), b"", 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        tail = (tail + chunk)[-_TAIL_BYTES:]
        if size <= MAX_PARSED_BYTES:
            kept += chunk
        else:
            kept.clear()
        if size > _MAX_READ_BYTES:
            raise httpx.ReadError("the answer has no end")
    content = bytes(kept) if size <= MAX_PARSED_BYTES else None
    return Answer(response.status_code, response.headers, content, tail)


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """How long the other side wishes to be left alone, an hour at most; None where it says nothing readable."""
    text = headers.get("retry-after", "")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        return None
    return min(float(text), _MAX_RETRY_AFTER_SECONDS)


def answered_at(headers: Mapping[str, str]) -> datetime | None:
    """When the other side answered by its own clock, to a second; None where it says nothing readable."""
    try:
        found = parsedate_to_datetime(headers.get("date", "")[:40])
    except (ValueError, TypeError, OverflowError):  # the last ones for numbers that no date has
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
