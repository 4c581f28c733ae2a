"""Sends parts of objects with the statuses 206 and 416, as the real Storage does. The upstream server does not."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import NamedTuple

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Part(NamedTuple):
    """The bytes from `first` to `last`, both included, of `total`."""

    first: int
    last: int
    total: int


def parse_range(header: str, total: int) -> Part | None:
    """Return the part that a Range header asks for; None if the object has no such part."""
    match = _RANGE.fullmatch(header)
    if match is None or total <= 0 or match[0] == "bytes=-":
        return None
    if not match[1]:
        length = int(match[2])
        return Part(max(total - length, 0), total - 1, total) if length > 0 else None
    first, last = int(match[1]), int(match[2]) if match[2] else total - 1
    return Part(first, min(last, total - 1), total) if first <= last and first < total else None


async def cut(chunks: AsyncIterator[bytes], part: Part) -> AsyncIterator[bytes]:
    """Yield a part of an object from the stream of the whole object."""
    at = 0
    async for chunk in chunks:
        piece = chunk[max(part.first - at, 0) : max(part.last + 1 - at, 0)]
        at += len(chunk)
        if piece:
            yield piece
