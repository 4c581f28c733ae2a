"""What comes back from an endpoint that runs vLLM behind RunPod's address, as values and as sentences.

The OpenAI protocol says what an answer is. An error may come in many shapes: vLLM's own, with its status; the worker's
(runpod-workers/worker-vllm, src/handler.py), which writes vLLM's status and body into a text; that of a failed job;
each of them with status 200, too (worker-vllm#57). So an error is looked for in every body, whatever its status.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from lora_contract.redaction import redact
from lora_contract.words import shorten
from lora_worker.errors import ModelUnknownError, ServiceError, ServiceRefusedError, ServiceUnavailableError

SERVICE = "inference endpoint"
DONE = "[DONE]"

_FROM_VLLM = re.compile(r"vLLM returned HTTP (\d{3}): (.{0,20000})", re.DOTALL)
_INNER_MESSAGE = re.compile(r'"message": ?"((?:[^"\\]|\\.){0,5000})"')
_UNKNOWN = re.compile(r"does not exist")
_NOT_LOADED = re.compile(r"was found but could not be loaded")
_TOO_LONG = re.compile(r"maximum context length is (\d+) tokens")
_DEAD = re.compile(r"worker is unhealthy|EngineCore|had an error while processing")
_MOST_SHOWN = 300
_NOT_READY = frozenset({408, 429, 502, 503, 504, 522, 523, 524})
"""While a machine starts, RunPod's edge gives up after about 100 s (524); the request may be sent again."""
_WAITING_JOBS = frozenset({"IN_QUEUE", "IN_PROGRESS"})


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an answer: some text, and at the end why it ends and how many tokens it took."""

    text: str = ""
    finish_reason: str | None = None
    """`stop`, or `length` where the answer was cut off."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def read_part(body: Any) -> Part | None:
    """A part from the JSON of an event, or a whole answer; None where the body is neither."""
    if not isinstance(body, Mapping) or not isinstance(choices := body.get("choices"), list):
        return None
    choice = choices[0] if choices and isinstance(choices[0], Mapping) else {}
    said = choice.get("delta") or choice.get("message") or {}
    text = said.get("content") if isinstance(said, Mapping) else None
    reason, usage = choice.get("finish_reason"), body.get("usage")
    counts = usage if isinstance(usage, Mapping) else {}
    return Part(
        text if isinstance(text, str) else "",
        reason if isinstance(reason, str) else None,
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9 else None


def base_name(body: Any) -> str | None:
    """The base's name from the answer of `/models`: the first model that has no other as its parent; None: none has."""
    cards = body.get("data") if isinstance(body, Mapping) else None
    for card in cards if isinstance(cards, list) else ():
        if isinstance(card, Mapping) and card.get("parent") is None and isinstance(card.get("id"), str):
            return str(card["id"])
    return None


def is_not_ready(status: int, body: Any) -> bool:
    """Whether the same request may be answered later: no machine has taken it yet."""
    waits = isinstance(body, Mapping) and body.get("status") in _WAITING_JOBS
    return status in _NOT_READY or waits


def explain(status: int, body: Any, *, model: str, endpoint: str) -> ServiceError:
    """The exception, with its sentence, for a body that is no answer."""
    if status in {401, 403}:
        return ServiceRefusedError(
            SERVICE,
            f"RunPod refuses the key for the endpoint {endpoint}: set GPU_CLUSTER_API_KEY to a key of its account that "
            "may call it.",
            status=status,
        )
    status, told = _told(status, body)
    if _UNKNOWN.search(told):
        return ModelUnknownError(model, endpoint)
    if status == HTTPStatus.NOT_FOUND:
        return ServiceRefusedError(
            SERVICE,
            f"RunPod has no endpoint {endpoint} for this key: check LORA_WORKER_RUNPOD_INFERENCE_ENDPOINT_ID.",
            status=status,
        )
    if _NOT_LOADED.search(told):
        return ServiceRefusedError(
            SERVICE,
            f"The endpoint has found {model} and can't load it: its rank may be above the endpoint's MAX_LORA_RANK, or "
            "vLLM can't serve its kind; the log of the endpoint's worker says which.",
            status=status,
        )
    if found := _TOO_LONG.search(told):
        return ServiceRefusedError(
            SERVICE,
            f"The question is longer than the {found[1]} tokens that the endpoint reads; shorten it.",
            status=400,
        )
    if _DEAD.search(told):
        return ServiceUnavailableError(
            SERVICE,
            "The endpoint's worker has lost its vLLM server and answers nobody until it is replaced: change a variable "
            "of the endpoint, which makes a release, or let it become idle.",
        )
    why = shorten(redact(" ".join(told.split())), _MOST_SHOWN) or f"HTTP {status}"
    return ServiceRefusedError(SERVICE, f"The endpoint does not answer: {why}", status=status)


def _told(status: int, body: Any) -> tuple[int, str]:
    """The status that vLLM gave, and what it said, from whichever shape an error has."""
    text = _text_of(body)
    if found := _FROM_VLLM.search(text):
        inner = _INNER_MESSAGE.search(found[2])
        return int(found[1]), _unescaped(inner[1]) if inner else found[2]
    return status, text


def _text_of(body: Any) -> str:
    for _ in range(4):
        if not isinstance(body, Mapping):
            break
        body = next((body[key] for key in ("error", "message", "detail") if body.get(key)), "")
    return body if isinstance(body, str) else ""


def _unescaped(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:
        return text
