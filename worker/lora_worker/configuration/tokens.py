"""The runs' tokens: derived from a secret, so that whoever adopts a run has its token and no row holds it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from uuid import UUID


def token_sha256(token: str) -> str:
    """What the database holds of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


class RunTokens:
    """The tokens that a worker can speak: of the present secret, and of former ones for runs of that time."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = [secret.encode() for secret in secrets]

    def of(self, run_id: UUID, launched_with: str | None) -> str | None:
        """The run's 256-bit token; `launched_with` is the sha256 of the one that its trainer holds.

        None where that token was made with a secret that this worker does not have.
        """
        tokens = [
            hmac.new(secret, b"lora-worker run token:" + run_id.bytes, hashlib.sha256).hexdigest()
            for secret in self._secrets
        ]
        if launched_with is None:
            return tokens[0]
        return next((token for token in tokens if token_sha256(token) == launched_with), None)
