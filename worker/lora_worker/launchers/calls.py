"""One call of a cloud's HTTP API, within the bound of its operation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import httpx

from lora_worker.launchers.answers import Answer, read_answer, retry_after_seconds
from lora_worker.launchers.limits import CallLimit, PausedError
from lora_worker.observability.calls import called


async def call_within(
    limit: CallLimit,
    http: httpx.AsyncClient,
    operation: str,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    parameters: Mapping[str, str] | None = None,
    content: bytes | None = None,
) -> Answer:
    """Send one call and read its answer, whatever its status; `content` is JSON.

    While the other side wants no calls, the answer is a 429 of our own, as it would give.

    Raises:
        httpx.HTTPError: there was no answer.
    """
    sent = dict(headers) if content is None else {**headers, "Content-Type": "application/json"}
    try:
        async with limit.place() as began_at:
            names = called("launcher", operation)
            async with http.stream(
                method, url, headers=sent, params=parameters, content=content, extensions=names
            ) as response:
                answer = await read_answer(response)
            if answer.status_code == 429:
                limit.refused(began_at, pause_seconds=retry_after_seconds(answer.headers))
            else:
                limit.taken()
            return answer
    except PausedError as pause:
        return Answer(429, {"retry-after": str(math.ceil(pause.seconds))}, b"")
