"""What a key is by its own words: whose, and until when. Nothing here verifies a signature.

A key in the wrong variable would be sent where it does not belong: the secret key to a GPU container, RunPod's to
Supabase. Each says what it is, as a JWT in its payload and otherwise by its prefix, so the mistake is found at start.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_MAX_CHARACTERS = 16_384
"""Longer than any key or token of these services."""


class Role(StrEnum):
    """Whose key it is, as a sentence goes on after “holds”."""

    SECRET = "the project's secret key (service_role)"  # noqa: S105 (what it is called, not what it is)
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
    """What a key says of itself. `expires_at` is in seconds since 1970, `project` the project's reference."""

    role: Role
    expires_at: float | None = None
    project: str | None = None

    def has_expired(self, now: float) -> bool:
        """Whether it was valid until a moment that has passed."""
        return self.expires_at is not None and self.expires_at <= now


def read_key(text: str) -> Key:
    """What a key says of itself; of unknown kind where it says nothing."""
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
    # Bounded before it becomes a float: a number of a thousand digits fits none.
    is_time = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12
    return float(value) if is_time else None


def _claims(text: str) -> dict[str, Any] | None:
    """A JWT's payload, unverified; None where it is none."""
    parts = text.split(".")
    if len(parts) != 3 or len(text) > _MAX_CHARACTERS:
        return None
    try:
        payload = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return payload if isinstance(payload, dict) else None


def secret_fault(key: Key, *, now: float) -> str | None:
    """Why a key can't be the one that the worker itself uses; None where it can."""
    if key.role not in {Role.SECRET, Role.UNKNOWN}:
        return f"holds {key.role}; set the secret key (sb_secret_…, or the legacy service_role JWT)"
    return _expired(key, now)


def public_fault(key: Key, *, now: float) -> str | None:
    """Why a key must not go to a GPU container, or is of no use there; None where it may."""
    if key.role not in {Role.PUBLISHABLE, Role.UNKNOWN}:
        return (
            f"holds {key.role}, and whatever stands there goes to the GPU container; "
            "set the publishable key (sb_publishable_…, or the legacy anon JWT)"
        )
    return _expired(key, now)


def launcher_fault(key: Key) -> str | None:
    """Why a key can't be RunPod's; None where it can."""
    if key.role in SUPABASE_ROLES or key.role is Role.HUGGING_FACE:
        return f"holds {key.role}; set an API key of RunPod (rpa_…)"
    return None


def _expired(key: Key, now: float) -> str | None:
    return "has expired; copy the project's present key" if key.has_expired(now) else None
