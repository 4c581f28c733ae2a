"""The handler of runpod-workers/worker-vllm, which hands a job to the vLLM server beside it (src/handler.py, 7a92503).

RunPod makes a job of each call of the OpenAI address: its route, and its body where there is one. What the handler
yields is the answer. A refusal of vLLM loses its status there: it becomes text inside an error of the worker's own.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from sandbox.inference.answers import Json
from sandbox.inference.vllm import VllmServer


def job_input(route: str, body: Any) -> Json:
    """The input of the job that RunPod makes of a call."""
    return {"openai_route": route, **({"openai_input": body} if body else {})}


async def handle(job: Json, server: VllmServer) -> AsyncIterator[Json | str]:
    """Yield the parsed JSON of the answer, or the text of a stream as it comes."""
    if server.is_dead:
        yield _error("vLLM server process is not running; worker is unhealthy")
        return
    body = job.get("openai_input")
    reply = await server.call("POST" if body else "GET", job["openai_route"], body)
    if reply.status >= 400:
        yield _error(f"vLLM returned HTTP {reply.status}: {json.dumps(reply.body)}")
    elif reply.events is not None:
        async for event in reply.events:
            yield event
    else:
        assert reply.body is not None
        yield reply.body


def _error(message: str) -> Json:
    return {"error": {"message": message, "type": "worker_error", "code": None}}
