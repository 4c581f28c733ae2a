"""The handler of runpod-workers/worker-vllm, which hands a job to the vLLM server beside it (src/handler.py, 7a92503).

RunPod makes a job of each call of the OpenAI address: its route, and its body where there is one. What the handler
yields is the answer. A refusal of vLLM loses its status there: it becomes text inside an error of the worker's own.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from sandbox.inference.answers import Json
from sandbox.inference.served import ServeSettings
from sandbox.inference.vllm import VllmServer

_RESOLVER = "lora_filesystem_resolver"
_MOUNT = "/runpod-volume"


def serve_settings(variables: Mapping[str, str], volume: Path) -> ServeSettings:
    """What worker-vllm and vLLM make of a container's variables (src/args_builder.py; vLLM's envs.py).

    `volume` is the folder that the container sees as /runpod-volume.

    Raises:
        ValueError: vLLM would not start.
    """
    if not variables.get("MODEL_NAME"):
        raise ValueError("vllm serve gets no --model")
    takes_adapters = variables.get("ENABLE_LORA", "").strip().lower() in {"true", "1", "yes", "on"}
    may_change = variables.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0").strip().lower() in {"1", "true"}
    plugins, folder = variables.get("VLLM_PLUGINS"), variables.get("VLLM_LORA_RESOLVER_CACHE_DIR")
    # Without a list of plugins vLLM loads all of them.
    place = None
    if folder and (plugins is None or _RESOLVER in plugins.split(",")):
        place = volume / Path(folder).relative_to(_MOUNT)
        if not place.is_dir():
            raise ValueError("VLLM_LORA_RESOLVER_CACHE_DIR must be set to a valid directory")
    return ServeSettings(
        variables["MODEL_NAME"],
        served_model_name=variables.get("OPENAI_SERVED_MODEL_NAME_OVERRIDE"),
        max_loras=int(variables.get("MAX_LORAS", "1")),
        max_cpu_loras=int(variables["MAX_CPU_LORAS"]) if "MAX_CPU_LORAS" in variables else None,
        max_lora_rank=int(variables.get("MAX_LORA_RANK", "16")),
        resolver_folder=place if takes_adapters and may_change else None,
    )


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
