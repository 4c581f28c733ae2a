"""Reads from an API key what kind it is and when it expires. Signatures are not verified.

A key in the wrong variable would be sent to the wrong place: the secret key to a GPU container, or RunPod's key to
Supabase. Every key shows its kind, a JWT in its payload and the others by their prefix. So the mistake can be found
before the first call.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import SecretStr

_MAX_CHARACTERS = 16_384
"""A longer text is not parsed. No key or token of these services is that long."""


class Role(StrEnum):
    """The kind of a key. The values continue a sentence after “holds”."""

    SECRET = "the project's secret key (service_role)"  # noqa: S105 the name of a kind of key, not a key
    PUBLISHABLE = "the project's publishable key (anon)"
    USER = "a signed-in user's access token"
    OTHER_ROLE = "a JWT of another role"
    RUNPOD = "a RunPod key"
    COMMAND_LINE = "a personal access token of Supabase's command line"
    HUGGING_FACE = "a Hugging Face token"
    UNKNOWN = "a key of unknown kind"


_PREFIXES = {
    "sb_secret_": Role.SECRET,
    "sb_publishable_": Role.PUBLISHABLE,
    "rpa_": Role.RUNPOD,
    "sbp_": Role.COMMAND_LINE,
    "hf_": Role.HUGGING_FACE,
}
_JWT_ROLES = {"service_role": Role.SECRET, "anon": Role.PUBLISHABLE, "authenticated": Role.USER}

SUPABASE_ROLES = frozenset({Role.SECRET, Role.PUBLISHABLE, Role.USER, Role.OTHER_ROLE, Role.COMMAND_LINE})


@dataclass(frozen=True, slots=True)
class Key:
    """What a key says about itself. `expires_at` is in Unix seconds; `project` is the reference of a project."""

    role: Role
    expires_at: float | None = None
    project: str | None = None

    def has_expired(self, now: float) -> bool:
        """Tell whether the key has expired at `now`, in Unix seconds. A key without an expiry date never has."""
        return self.expires_at is not None and self.expires_at <= now


def read_key(text: str) -> Key:
    """Read kind, expiry and project from a key; the kind is `Role.UNKNOWN` if the key does not show it."""
    named = [role for prefix, role in _PREFIXES.items() if text.startswith(prefix)]
    if named:
        return Key(named[0])
    claims = _claims(text)
    if claims is None:
        return Key(Role.UNKNOWN)
    role = claims.get("role")
    expires_at, project = claims.get("exp"), claims.get("ref")
    return Key(
        _JWT_ROLES.get(role, Role.OTHER_ROLE) if isinstance(role, str) else Role.OTHER_ROLE,
        _seconds(expires_at),
        project if isinstance(project, str) else None,
    )


def _seconds(value: Any) -> float | None:
    # Limited before the conversion: float() raises OverflowError for an integer with a thousand digits.
    is_time = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12
    return float(value) if is_time else None


def _claims(text: str) -> dict[str, Any] | None:
    """Return the payload of a JWT without verifying it; None if the text is no JWT."""
    parts = text.split(".")
    if len(parts) != 3 or len(text) > _MAX_CHARACTERS:
        return None
    try:
        payload = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return payload if isinstance(payload, dict) else None


def secret_fault(key: Key, *, now: float) -> str | None:
    """Explain why a key can't be the secret key that the worker uses, as the end of a sentence; None if it can."""
    if key.role not in {Role.SECRET, Role.UNKNOWN}:
        return f"holds {key.role}; set the secret key (sb_secret_…, or the legacy service_role JWT)"
    return _expired(key, now)


def public_fault(key: Key, *, now: float) -> str | None:
    """Explain why a key must not be sent to a GPU container, or is useless there; None if it may be sent."""
    if key.role not in {Role.PUBLISHABLE, Role.UNKNOWN}:
        return (
            f"holds {key.role}, and whatever stands there goes to the GPU container; "
            "set the publishable key (sb_publishable_…, or the legacy anon JWT)"
        )
    return _expired(key, now)


def text_fault(key: SecretStr) -> str | None:
    """Explain why a text can't be a key of any service, as the end of a sentence; None if it can."""
    text = key.get_secret_value()
    if not text.strip() or text != text.strip() or not text.isascii() or not text.isprintable():
        return "is empty or holds blanks; copy the key again"
    return None


def _expired(key: Key, now: float) -> str | None:
    return "has expired; copy the project's present key" if key.has_expired(now) else None
