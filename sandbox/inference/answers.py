"""The JSON of vLLM's answers (vLLM 0.33.0: protocol.py in entrypoints/openai/* and in entrypoints/serve/engine)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

Json = dict[str, Any]


class RefusedError(Exception):
    """vLLM refuses a request: `status` and the body of its answer."""

    def __init__(self, status: HTTPStatus, message: str, *, kind: str = "BadRequestError", param: str | None = None):
        super().__init__(message)
        self.status = int(status)
        error = {"message": message, "type": kind, "param": param, "code": int(status)}
        self.body: Json = {"error": error}


class EngineDiedError(Exception):
    """vLLM's engine has ended in the middle of its work. Its API server tells the callers, and ends, too."""


def engine_died() -> RefusedError:
    """What callers are told whose request met the end of the engine (`EngineDeadError.CLIENT_MESSAGE`)."""
    return RefusedError(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "The server had an error while processing your request.",
        kind="InternalServerError",
    )


@dataclass(frozen=True)
class Head:
    """What all parts of one answer have in common."""

    id: str
    model: str
    created: int

    @classmethod
    def make(cls, prefix: str, model: str) -> Head:
        """A head with a new id, `chatcmpl-…` or `cmpl-…`."""
        return cls(f"{prefix}-{secrets.token_hex(16)}", model, int(time.time()))

    def of(self, kind: str, **more: Any) -> Json:
        """One answer of this kind."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, **more}


def model_card(name: str, root: str, *, parent: str | None, max_model_len: int | None) -> Json:
    """An element of `/v1/models`."""
    now = int(time.time())
    permission = {
        "id": f"modelperm-{secrets.token_hex(16)}",
        "object": "model_permission",
        "created": now,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name, "object": "model", "created": now, "owned_by": "vllm", "root": root, "parent": parent,
        "max_model_len": max_model_len, "permission": [permission],
    }  # fmt: skip


def usage(prompt_tokens: int, completion_tokens: int, *, full: bool = True) -> Json:
    """How many tokens were read and written; in a stream without the keys that are null."""
    counts: Json = {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }
    return {**counts, "prompt_tokens_details": None, "completion_tokens_details": None} if full else counts


def chat_answer(head: Head, text: str, finish_reason: str, counts: Json) -> Json:
    """A whole answer of `/v1/chat/completions`."""
    message = {
        "role": "assistant", "content": text, "refusal": None, "annotations": None, "audio": None,
        "function_call": None, "reasoning": None,
    }  # fmt: skip
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason, "stop_reason": None}
    return head.of("chat.completion", choices=[choice], usage=counts, **_NULLS)


def text_answer(head: Head, text: str, finish_reason: str, counts: Json) -> Json:
    """A whole answer of `/v1/completions`."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason, "stop_reason": None}
    return head.of("text_completion", choices=[choice], usage=counts, **_NULLS)


_NULLS: Mapping[str, None] = {"service_tier": None, "system_fingerprint": None, "kv_transfer_params": None}


def chat_chunk(head: Head, delta: Json, finish_reason: str | None) -> Json:
    """A part of a streamed answer of `/v1/chat/completions`."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return head.of("chat.completion.chunk", choices=[choice])


def text_chunk(head: Head, text: str, finish_reason: str | None) -> Json:
    """A part of a streamed answer of `/v1/completions`."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
    return head.of("text_completion", choices=[choice])


def usage_chunk(head: Head, kind: str, counts: Json) -> Json:
    """The part that ends a stream whose caller asked for the counts of tokens."""
    return head.of(kind, choices=[], usage=counts)
