"""Replaces keys, tokens and signed URLs in texts that are logged, stored or shown.

Worker and trainer share it: the trainer cleans what its container prints, and the worker cleans it again, because it
does not trust the container.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SHORTEST_SECRET = 8
"""A given secret shorter than this is not looked for: its replacement would only garble the text around it."""

_URL = re.compile(r"\bhttps?://[^\s\"'<>\\]++", re.IGNORECASE)
_SECRETS = re.compile(
    r"(eyJ[\w-]{8,}+\.[\w-]++\.?[\w-]*+)|(sb_(?:secret|publishable)_[\w-]+)|(rpa_\w+)|(hf_\w{20,})"
    r"|(\bsk-[\w-]{16,})|(\bgh[pousr]_\w{16,})|(\bxox[a-z]-[\w-]{8,})|(\bAKIA[0-9A-Z]{12,})"
    r"|((?<=[?&])(?:token|apikey|sig|signature|X-Amz-\w+)=[^&\s\"']+)|(Bearer\s+\S+)"
    r"|(/object/(?:upload/)?sign/\S*)",
    re.IGNORECASE,
)
_RANDOM = re.compile(r"(?<![\w-])(?=[\w-]*[A-Z])(?=[\w-]*[a-z])(?=[\w-]*\d)[A-Za-z0-9_-]{40,}(?![\w-])")
"""A run's token, or another key without a prefix: long, with capitals, small letters and digits, unlike a hash."""

HIDDEN = "[secret]"


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Replace keys, tokens, signed URLs and the given `secrets` in a text by “[secret]”."""
    for secret in secrets:
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
    return _SECRETS.sub(HIDDEN, _URL.sub(_unsigned, text))


def _unsigned(found: re.Match[str]) -> str:
    url = found.group()
    return HIDDEN if "?" in url or "/sign/" in url else url


def redact_random(text: str) -> str:
    """Replace as well what looks like a key without a known prefix, as a run's token does."""
    return _RANDOM.sub(HIDDEN, text)
