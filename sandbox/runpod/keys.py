"""The API keys of the account, each with what it may do."""

from __future__ import annotations

import secrets
from enum import StrEnum


class Rights(StrEnum):
    """What a key may do. RunPod's console offers the first three kinds."""

    ALL = "all"
    READ = "read"
    """Reads everything, writes nothing, and submits no job."""
    JOBS = "jobs"
    """Calls the endpoints' job API only; the REST API refuses it."""
    POD = "pod"
    """A container's own: it looks at and ends its pod, and nothing else."""


class Keys:
    """The valid keys. May be used from any thread: every change is a single assignment or deletion."""

    def __init__(self, first: str | None = None) -> None:
        self.first = first or _new_key()
        self._rights = {self.first: Rights.ALL}
        self._pods: dict[str, str] = {}

    def add(self, rights: Rights = Rights.ALL) -> str:
        """Create a key and return it."""
        key = _new_key()
        self._rights[key] = rights
        return key

    def add_for_pod(self, pod_id: str) -> str:
        """Create the key that a pod's container gets, and return it."""
        key = self.add(Rights.POD)
        self._pods[key] = pod_id
        return key

    def pod_of(self, authorization: str | None) -> str | None:
        """Return the pod whose own key is in an `Authorization` header; None for any other key."""
        return self._pods.get((authorization or "").partition(" ")[2].strip())

    def revoke(self, key: str) -> None:
        """Make a key invalid. Does nothing if it already is."""
        self._rights.pop(key, None)

    def rights_of(self, authorization: str | None) -> Rights | None:
        """Return the rights of the key in an `Authorization` header; None if there is no valid key in it."""
        scheme, _, key = (authorization or "").partition(" ")
        return self._rights.get(key.strip()) if scheme.lower() == "bearer" else None


def _new_key() -> str:
    return f"rpa_{secrets.token_hex(20)}"
