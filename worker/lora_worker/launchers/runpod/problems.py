"""RunPod's refusals (RFC 9457) as one sentence: what was refused, which field, and what to do."""

from __future__ import annotations

import re
from typing import Any

from lora_contract.redaction import redact

_MAX_CHARACTERS = 300
_MAX_FIELDS = 3
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def explain_refusal(status: int, doing: str, problem: Any, *, key: str, rights: str) -> str:
    """Explain a refusal (4xx) in one sentence.

    Args:
        status: the HTTP status.
        doing: what was refused, such as “make the endpoint”.
        problem: the answer's parsed body, whatever it is.
        key: RunPod's key, which is taken out of the text if RunPod repeats it.
        rights: what the key needs access to, as RunPod's console calls it.
    """
    if status == 401:
        return f"RunPod refused the API key (401) when it should {doing}: check GPU_CLUSTER_API_KEY, or make a new key"
    if status == 403:
        return (
            f"RunPod's API key has no right to {doing} (403): give it read and write access to {rights} "
            "in RunPod's console under Settings, API Keys, or set another key in GPU_CLUSTER_API_KEY"
        )
    said = "; ".join(filter(None, [_text(problem, "detail") or _text(problem, "title"), *_fields(problem)]))
    shown = redact(said, [key])[:_MAX_CHARACTERS]
    return f"RunPod refused to {doing} ({status})" + (f": {shown}" if shown else "")


def _text(problem: Any, name: str) -> str:
    value = problem.get(name) if isinstance(problem, dict) else None
    return _CONTROL.sub(" ", value).strip()[:_MAX_CHARACTERS] if isinstance(value, str) else ""


def _fields(problem: Any) -> list[str]:
    """Return what is wrong with single fields: RunPod writes texts, other servers objects with location and message."""
    errors = problem.get("errors") if isinstance(problem, dict) else None
    if not isinstance(errors, list):
        return []
    return [text for text in map(_field, errors[:_MAX_FIELDS]) if text]


def _field(error: Any) -> str:
    if isinstance(error, str):
        return _CONTROL.sub(" ", error).strip()[:_MAX_CHARACTERS]
    return ": ".join(filter(None, [_text(error, "location"), _text(error, "message")]))
