"""The API keys of the account, each with what it may do."""

from __future__ import annotations

import secrets
from enum import StrEnum


class Rights(StrEnum):
    """What a key may do. RunPod's console offers the same three kinds."""

    ALL = "all"
    READ = "read"
    """Reads everything, writes nothing, and submits no job."""
    JOBS = "jobs"
    """Calls the endpoints' job API only; the REST API refuses it."""


class Keys:
    """The valid keys. May be used from any thread: every change is a single assignment or deletion."""

    def __init__(self, first: str | None = None) -> None:
        self.first = first or _new_key()
        self._rights = {self.first: Rights.ALL}

    def add(self, rights: Rights = Rights.ALL) -> str:
        """Create a key and return it."""
        key = _new_key()
        self._rights[key] = rights
        return key

    def revoke(self, key: str) -> None:
        """Make a key invalid. Does nothing if it already is."""
        self._rights.pop(key, None)

    def rights_of(self, authorization: str | None) -> Rights | None:
        """Return the rights of the key in an `Authorization` header; None if there is no valid key in it."""
        scheme, _, key = (authorization or "").partition(" ")
        return self._rights.get(key.strip()) if scheme.lower() == "bearer" else None


def _new_key() -> str:
    return f"rpa_{secrets.token_hex(20)}"
