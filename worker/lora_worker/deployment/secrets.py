"""Recognises secrets among a container's variables: everybody who may see the endpoint sees them, in clear text."""

from __future__ import annotations

import re

from lora_contract.redaction import redact
from lora_worker.configuration.keys import Role, read_key

_REFERENCE = re.compile(r"\{\{ ?RUNPOD_SECRET_[A-Za-z0-9_]{1,100} ?\}\}", re.ASCII)
_REMEDY = 'store it as a secret at RunPod and write "{{ RUNPOD_SECRET_<its name> }}"'
_SECRET_WORDS = ("TOKEN", "TOKENS", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "PWD", "KEY", "KEYS", "CREDENTIAL", "CREDENTIALS")  # fmt: skip # noqa: E501
_SECRET_ENDS = ("TOKEN", "SECRET", "PASSWORD", "APIKEY", "ACCESSKEY", "PRIVATEKEY")
_OPEN_WORDS = frozenset({"PUBLIC", "PUBLISHABLE", "ANON"})
_VALUES = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@"  # a URL with a password
    r"|\b(?:gh[pousr]_|github_pat_|glpat-|sk-|xox[abprs]-|AKIA|ASIA|AIza|dckr_pat_|nvapi-)[A-Za-z0-9_-]{8,}",
)


def secret_fault(name: str, value: str) -> str | None:
    """Explain why a variable may hold a secret, as the end of a sentence; None if it does not look so.

    The value is never part of the text. A reference to a secret at RunPod is what the text recommends.
    """
    if _REFERENCE.fullmatch(value):
        return None
    if _is_secret_name(name) and value:
        return f"looks like a secret, and everybody who sees the endpoint sees it: {_REMEDY}"
    role = read_key(value).role
    if role is not Role.UNKNOWN:
        return f"holds {role}, and everybody who sees the endpoint sees it: {_REMEDY}"
    if _VALUES.search(value) or redact(value) != value:
        return f"holds what looks like a key or password: {_REMEDY}"
    return None


def _is_secret_name(name: str) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper().split("_")
    if _OPEN_WORDS & set(words):
        return False
    return any(word in _SECRET_WORDS or word.endswith(_SECRET_ENDS) for word in words)
