"""REST answers as PostgREST spells them."""

from __future__ import annotations

import re

from sandbox.proxy.answer import Answer

_TIMESTAMP = re.compile(rb'"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d{1,6})?)([+-]\d\d)(?::?(\d\d))?"')


def rewrite_answer(answer: Answer) -> Answer:
    """The JSON answer to any request as the real server gives it."""
    return answer._replace(body=iso_timestamps(answer.body))


def iso_timestamps(body: bytes) -> bytes:
    """The JSON text with Postgres' timestamps (`2026-01-02 03:04:05+00`) as ISO 8601."""
    return _TIMESTAMP.sub(lambda m: b'"%bT%b%b:%b"' % (m[1], m[2], m[3], m[4] or b"00"), body)
